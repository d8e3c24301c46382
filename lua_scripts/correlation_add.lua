-- correlation_add: remembers things that belong to a correlation; sent twice it remembers them twice, readers see one.
--
-- KEYS[1] stream of the correlation
-- ARGV[1] prefix of the shard's keys
-- ARGV[2] 1 if what was committed before is to stand before them within a millisecond too, else 0
-- ARGV[3...] kind and versioned bytes in turn
-- returns: the stream's length.
--- @include "lib/clock"
--- @include "lib/correlation"
local name = sub(KEYS[1], #ARGV[1] + #'corr:' + 1)
local after = ARGV[2] == '1' and redis.pcall('LINDEX', KEYS[1] .. ':log', -1)
for i = 3, #ARGV, 2 do
  local added = note_correlated(ARGV[1], name, ARGV[i], ARGV[i + 1], after)
  if type(added) == 'table' and added.err then
    return redis.error_reply(added.err) -- full, or not allowed
  end
end
correlation_active(ARGV[1], name, format('%.0f', now()))
return redis.call('XLEN', KEYS[1])
