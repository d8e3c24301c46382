-- event_renew: keeps events for a consumer that still works on them.
--
-- KEYS[1] queue
-- ARGV[1] consumer
-- ARGV[2...] ids
-- returns: the ids that it no longer holds.
--- @include "lib/held"
local queue, me = KEYS[1], ARGV[1]
local lost = {}
for i = 2, #ARGV do
  local id = ARGV[i]
  local pending = redis.pcall('XPENDING', queue, 'q', id, id, 1, me)
  if type(pending) == 'table' and not pending.err and pending[1] then
    keep(queue, me, id)
  else
    lost[#lost + 1] = id
  end
end
return lost
