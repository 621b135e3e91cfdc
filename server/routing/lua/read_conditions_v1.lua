-- Read the shared conditions of many targets at one moment.
--
-- KEYS[…]  the conditions
--
-- {time, version, condition, version, condition, …}; version '0' and '' where there is none
local t = redis.call('TIME')
local found = {t[1] .. '.' .. string.format('%06d', t[2])}
for i = 1, #KEYS do
  local have = redis.call('HMGET', KEYS[i], 'v', 'c')
  found[#found + 1] = have[1] or '0'
  found[#found + 1] = have[2] or ''
end
return found
