-- Renew the leases of holds that are still in use; all of one tag in one call. Without holds: keep the clock going.
--
-- KEYS[1]  clock of the tag   then for each hold: the hold, and of each of its owners bucket, leases, amounts
-- ARGV[1]  length of a lease, microseconds   ARGV[2] how long a hold is remembered, milliseconds
-- ARGV[3]  of each owner of a hold, the same for all of them: '1' where it takes none of the holds at once, else '0'
-- ARGV[4…] ids of the holds
--
-- One number a hold: 1 renewed (a slot that was swept is taken again: the message does run) · 0 settled or unknown
local now, leased = tick(KEYS[1], tonumber(ARGV[1]))
local reply = {}
local width = 3 * #ARGV[3] + 1
for h = 4, #ARGV do
  local id, k = ARGV[h], width * (h - 4) + 2
  local have = redis.call('HMGET', KEYS[k], 'tokens', 'settled', 'nano')
  reply[h - 3] = 0
  if have[1] and not have[2] then
    reply[h - 3] = 1
    for i = 1, #ARGV[3] do
      local first = k + 3 * i - 2
      local o = {
        bucket = KEYS[first], leases = KEYS[first + 1], amounts = KEYS[first + 2],
        slotted = string.sub(ARGV[3], i, i) == '0'
      }
      o.held = tonumber(redis.call('HGET', o.bucket, 'held')) or 0
      local before = o.held
      lease(o, id, tonumber(have[3]), leased + tonumber(ARGV[1]))
      if o.held ~= before then
        redis.call('HSET', o.bucket, 'held', int(o.held))
        redis.call('PEXPIRE', o.bucket, KEEP_MONEY_MS)
      end
    end
    redis.call('PEXPIRE', KEYS[k], ARGV[2])
  end
end
return reply
