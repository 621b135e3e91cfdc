-- Read a bounded page of a journal in one round trip.
--
-- KEYS[1]  journal
-- ARGV[1]  stream id to start from, as XRANGE takes it (`7-0` inclusive, `(7-0` exclusive)
-- ARGV[2]  bytes after which the page is full (the entry that fills it is still in it)
--
-- {entry, …} packed, in order
local page, bytes, start = {}, 0, ARGV[1]
local budget = tonumber(ARGV[2])
repeat
  local got = redis.call('XRANGE', KEYS[1], start, '+', 'COUNT', 32)
  for _, item in ipairs(got) do
    page[#page + 1] = item[2][4]
    bytes = bytes + #item[2][4]
    start = '(' .. item[1]
    if bytes >= budget then
      return page
    end
  end
until #got < 32
return page
