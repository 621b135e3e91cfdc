-- Write what the message answers into its record, once, before anything is dispatched.
--
-- KEYS[1]  record of the message
-- ARGV[1]  fence of the caller   ARGV[2]  the history, packed
--
-- the history that stands; nothing if the caller is fenced
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then
  return false
end
redis.call('HSETNX', KEYS[1], 'history', ARGV[2])
return redis.call('HGET', KEYS[1], 'history')
