-- log_entry: which entry of the log stands at a place, without what stands in it.
--
-- KEYS[1] log stream of the shard
-- ARGV[1] `first`, `last`, or a revision as text: the newest entry up to it, or just that one
-- ARGV[2] 1 for just that one
-- returns: its id and operation; nothing if there is none.
local found
if ARGV[1] == 'first' then
  found = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
elseif ARGV[2] == '1' then
  found = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1], 'COUNT', 1)
else
  found = redis.call('XREVRANGE', KEYS[1], ARGV[1] == 'last' and '+' or ARGV[1], '-', 'COUNT', 1)
end
local entry = found[1]
return entry and { entry[1], entry[2][6] } or {}
