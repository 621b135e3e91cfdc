-- What the quota scripts share; put in front of each of them when they are loaded.
--
-- An owner (a user, or a tenant as a whole; in general, or for one route) has three keys, all under its tenant's tag:
--   bucket   hash: t, tp  tokens left, and sixty-millionths of one · r, rp  the same for requests · at  when that was
--                  month, spent  nano-dollars settled in that month · held  nano-dollars of the leases
--   leases   zset: hold id → end of its lease      amounts  hash: hold id → nano-dollars held by it
-- and four limits: tokens and requests a minute, holds at once, nano-dollars a month; '' is no limit.
--
-- Times are microseconds of this server's clock, clamped never to run backward. Leases are measured on a clock of
-- their own that stood still while nobody could renew them: `lost` is by how much it is behind. All numbers are whole
-- and below 2^53, so that doubles hold them exactly; a bucket gains limit/60,000,000 tokens a microsecond and keeps
-- the remainder.
local MINUTE = 60000000
-- By so much later (2^52 microseconds) is the lease of a hold that only keeps money, and none of the holds at once.
local UNSLOTTED = 4503599627370496
local FIRST_UNSLOTTED = '(4503599627370496'
local KEEP_MS = '120000'
local KEEP_MONEY_MS = '3456000000'

local function int(x)
  return string.format('%.0f', x)
end

-- The time, the time by which leases are measured, and a number that rises with every change under this tag.
local function tick(key, lease)
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
  local have = redis.call('HMGET', key, 'seen', 'lost', 'step')
  local seen, lost, step = tonumber(have[1]) or now, tonumber(have[2]) or 0, (tonumber(have[3]) or 0) + 1
  if now < seen then
    now = seen
  elseif now - seen > lease / 2 then
    lost = lost + now - seen
  end
  redis.call('HSET', key, 'seen', int(now), 'lost', int(lost), 'step', int(step))
  redis.call('PEXPIRE', key, KEEP_MONEY_MS)
  return now, now - lost, step
end

local function gained(elapsed, part, limit)
  local minutes = math.floor(elapsed / MINUTE)
  local rest = elapsed - minutes * MINUTE
  local whole = math.floor(limit / MINUTE)
  local odd = rest * (limit - whole * MINUTE) + part
  local carry = math.floor(odd / MINUTE)
  return minutes * limit + rest * whole + carry, odd - carry * MINUTE
end

local function refilled(tokens, part, elapsed, limit)
  if not tokens then
    return limit, 0
  end
  local more, left = gained(elapsed, part, limit)
  if tokens + more >= limit then
    return limit, 0
  end
  return tokens + more, left
end

-- Microseconds until `need` tokens are there: the least that are enough.
local function wait_for(tokens, part, limit, need)
  local lack = need - tokens
  if lack <= 0 then
    return 0
  end
  local wait = math.max(0, math.floor((lack - part / MINUTE) * (MINUTE / limit)))
  while gained(wait, part, limit) < lack do
    wait = wait + 1
  end
  while wait > 0 and gained(wait - 1, part, limit) >= lack do
    wait = wait - 1
  end
  return wait
end

-- The calendar month (UTC) as year * 12 + month - 1 (Howard Hinnant, "chrono-compatible low-level date algorithms").
local function month_at(now)
  local z = math.floor(now / 86400000000) + 719468
  local era = math.floor(z / 146097)
  local day = z - era * 146097
  local year = math.floor((day - math.floor(day / 1460) + math.floor(day / 36524) - math.floor(day / 146096)) / 365)
  local of_year = day - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local shifted = math.floor((5 * of_year + 2) / 153)
  local month = shifted < 10 and shifted + 3 or shifted - 9
  return (year + era * 400 + (month <= 2 and 1 or 0)) * 12 + month - 1
end

local function month_start(index)
  local year, month = math.floor(index / 12), index % 12 + 1
  local y = month <= 2 and year - 1 or year
  local era = math.floor(y / 400)
  local of_era = y - era * 400
  local of_year = math.floor((153 * (month > 2 and month - 3 or month + 9) + 2) / 5)
  local days = era * 146097 + of_era * 365 + math.floor(of_era / 4) - math.floor(of_era / 100) + of_year - 719468
  return days * 86400000000
end

-- The owner whose keys begin at KEYS[k] and whose limits at ARGV[a], as it stands now. `counts`: a message is counted
-- in it; without that it is only shown.
local function owner_at(k, a, now)
  local o = {
    bucket = KEYS[k], leases = KEYS[k + 1], amounts = KEYS[k + 2],
    tpm = tonumber(ARGV[a]), rpm = tonumber(ARGV[a + 1]), slots = tonumber(ARGV[a + 2]), cap = tonumber(ARGV[a + 3]),
    part = ARGV[a + 4], counts = ARGV[a + 4] ~= '', tokens = string.find(ARGV[a + 5], '1') ~= nil,
    requests = string.find(ARGV[a + 5], '2') ~= nil, slotted = string.find(ARGV[a + 5], '3') ~= nil,
    money = string.find(ARGV[a + 5], '4') ~= nil
  }
  local have = redis.call('HMGET', o.bucket, 't', 'tp', 'r', 'rp', 'at', 'month', 'spent', 'held')
  local elapsed = math.max(0, now - (tonumber(have[5]) or now))
  if o.tpm then
    o.t, o.tp = refilled(tonumber(have[1]), tonumber(have[2]), elapsed, o.tpm)
  end
  if o.rpm then
    o.r, o.rp = refilled(tonumber(have[3]), tonumber(have[4]), elapsed, o.rpm)
  end
  o.at = now
  o.month = month_at(now)
  o.spent = tonumber(have[6]) == o.month and tonumber(have[7]) or 0
  o.held = tonumber(have[8]) or 0
  return o
end

-- Free the slots and the money of leases that are over. The holds stay: a late settlement still finds them.
local function sweep(o, leased)
  local before = o.held
  local function free(from, till)
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', o.leases, from, int(till))) do
      o.held = o.held - (tonumber(redis.call('HGET', o.amounts, id)) or 0)
      redis.call('ZREM', o.leases, id)
      redis.call('HDEL', o.amounts, id)
    end
  end
  free('-inf', leased)
  free(FIRST_UNSLOTTED, UNSLOTTED + leased)
  if o.held ~= before then
    redis.call('HSET', o.bucket, 'held', int(o.held))
  end
end

-- The owners whose keys begin at KEYS[k] and whose limits at ARGV[a], to the last one; those that count are swept.
local function owners_at(k, a, now, leased)
  local owners = {}
  for i = 0, (#KEYS - k + 1) / 3 - 1 do
    local o = owner_at(k + 3 * i, a + 6 * i, now)
    if o.counts then
      sweep(o, leased)
    end
    owners[i + 1] = o
  end
  return owners
end

local function lease(o, id, nano, till)
  local before = tonumber(redis.call('HGET', o.amounts, id)) or 0
  redis.call('ZADD', o.leases, int(o.slotted and till or UNSLOTTED + till), id)
  redis.call('PEXPIRE', o.leases, KEEP_MONEY_MS)
  if nano ~= before then
    o.held = o.held + nano - before
    redis.call('HSET', o.amounts, id, int(nano))
  end
  redis.call('PEXPIRE', o.amounts, KEEP_MONEY_MS)
end

local function slots_taken(o)
  return redis.call('ZCOUNT', o.leases, '-inf', FIRST_UNSLOTTED)
end

local function unlease(o, id)
  o.held = o.held - (tonumber(redis.call('HGET', o.amounts, id)) or 0)
  redis.call('ZREM', o.leases, id)
  redis.call('HDEL', o.amounts, id)
end

-- A bucket that is forgotten is a full one, so it may go when it would be full; spent money is kept for the month.
local function save(o)
  local fields = {'at', int(o.at), 'month', int(o.month), 'spent', int(o.spent), 'held', int(o.held)}
  local full = 0
  if o.t then
    fields[9], fields[10], fields[11], fields[12] = 't', int(o.t), 'tp', int(o.tp)
    full = wait_for(o.t, o.tp, o.tpm, o.tpm)
  end
  if o.r then
    local n = #fields
    fields[n + 1], fields[n + 2], fields[n + 3], fields[n + 4] = 'r', int(o.r), 'rp', int(o.rp)
    full = math.max(full, wait_for(o.r, o.rp, o.rpm, o.rpm))
  end
  redis.call('HSET', o.bucket, unpack(fields))
  local keep = tonumber((o.spent > 0 or o.held > 0) and KEEP_MONEY_MS or KEEP_MS)
  redis.call('PEXPIRE', o.bucket, int(keep + math.ceil(full / 1000)))
end

-- Six numbers an owner: tokens, microseconds until they are full, requests, the same, holds, nano-dollars; -1: no limit.
local function show(reply, o)
  local n = #reply
  reply[n + 1] = o.t and int(o.t) or '-1'
  reply[n + 2] = o.t and int(wait_for(o.t, o.tp, o.tpm, o.tpm)) or '-1'
  reply[n + 3] = o.r and int(o.r) or '-1'
  reply[n + 4] = o.r and int(wait_for(o.r, o.rp, o.rpm, o.rpm)) or '-1'
  reply[n + 5] = int(slots_taken(o))
  reply[n + 6] = int(o.spent + o.held)
end

-- The same numbers, for the nodes on which this user has sessions: `time number number …`, a line end, and `from` as it
-- was handed in.
local function publish(channel, now, numbers, from)
  redis.call('SPUBLISH', channel, int(now) .. ' ' .. table.concat(numbers, ' ') .. '\n' .. from)
end

