-- What the scripts of one job share; put in front of each of them when they are loaded.
--
-- KEYS[1…7] are the job's record, items, names, results, states, ready and taken (`server.store.keys.JobKeys`).
-- Fields of the record that scripts change:
--   status   queued · running · done · failed · cancelled     total  items     next  first item never taken
--   done, failed, cancelled   items by how they ended          stop   cancelled · expired: no new item is begun
--   input, output, cached, reasoning, nano   tokens, and nano-dollars where a price is known, of items with a result
--   created, deadline, ended   milliseconds of this server's clock     keep   how long it is kept after the end, ms
-- An item is in `taken` while a worker has it, in `ready` once it was given back, and in `results` when it has ended.
local RECORD, ITEMS, NAMES, RESULTS, STATES, READY, TAKEN = unpack(KEYS, 1, 7)

local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function int(x)
  return string.format('%.0f', x)
end

local function over(status)
  return status == 'done' or status == 'failed' or status == 'cancelled'
end

local function keep(ms)
  for index = 1, 7 do
    redis.call('PEXPIRE', KEYS[index], ms)
  end
end

-- End the job if nothing is left to do; its status.
local function finish(now)
  local have = redis.call('HMGET', RECORD, 'status', 'total', 'done', 'failed', 'cancelled', 'stop', 'keep')
  if over(have[1]) or redis.call('ZCARD', TAKEN) > 0 then
    return have[1]
  end
  local total, done, failed, cancelled = tonumber(have[2]), tonumber(have[3]), tonumber(have[4]), tonumber(have[5])
  local left = total - done - failed - cancelled
  if left > 0 and (not have[6] or redis.call('ZCARD', READY) > 0) then
    return have[1]
  end
  if have[6] == 'expired' then
    failed = failed + left
  else
    cancelled = cancelled + left
  end
  local status = 'done'
  if cancelled == total or (have[6] == 'cancelled' and cancelled > 0) then
    status = 'cancelled'
  elseif done == 0 or (have[6] == 'expired' and left > 0) then
    status = 'failed'
  end
  redis.call('HSET', RECORD, 'status', status, 'ended', int(now), 'failed', int(failed), 'cancelled', int(cancelled))
  redis.call('DEL', ITEMS, READY)
  keep(have[7])
  return status
end
