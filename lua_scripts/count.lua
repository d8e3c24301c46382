-- count: how many keys a scope has, without those that have expired and were not yet removed.
--
-- KEYS[1] the scope's hash
-- KEYS[2] its expiry times
-- returns: the number of keys, then the scope's own record `$$` or nil; of a damaged one none are counted.
--- @include "lib/clock"
local meta = redis.call('HGET', KEYS[1], '$$')
if not meta or #meta < 32 or byte(meta, 1) ~= 1 then
  return { 0, meta }
end
return { u32(meta, 12) - redis.call('ZCOUNT', KEYS[2], '-inf', format('%.0f', now())), meta }
