-- event_release: gives back what a consumer holds and did not handle, for others to take at once; it leaves the group.
--
-- KEYS[1] queue
-- ARGV[1] consumer
-- ARGV[2] the queue's bell
-- ARGV[3...] per event its id and how often it was handed out
-- returns: how many events the consumer still holds, at most 1.
--- @include "lib/held"
local queue, me = KEYS[1], ARGV[1]
local given = false
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  local pending = redis.pcall('XPENDING', queue, 'q', id, id, 1, me)
  if type(pending) == 'table' and not pending.err and pending[1] then
    give_back(queue, me, id, ARGV[i + 1])
    given = true
  end
end
local left = redis.pcall('XPENDING', queue, 'q', '-', '+', 1, me)
if type(left) ~= 'table' or left.err then
  return 0
end
if #left == 0 then
  redis.call('XGROUP', 'DELCONSUMER', queue, 'q', me)
end
if given then
  redis.pcall('PUBLISH', ARGV[2], 'c')
end
return #left
