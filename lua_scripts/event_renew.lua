-- event_renew: keeps events for a consumer that still works on them.
--
-- KEYS[1] queue
-- ARGV[1] consumer
-- ARGV[2...] ids
-- returns: the ids that it no longer holds.
local queue, me = KEYS[1], ARGV[1]
local lost = {}
for i = 2, #ARGV do
  local id = ARGV[i]
  local pending = redis.pcall('XPENDING', queue, 'q', id, id, 1, me)
  if type(pending) == 'table' and not pending.err and pending[1] then
    -- One that a full queue has dropped meanwhile: claimed, it would not be held any more, and its acknowledgement
    -- says that it was not lost after all.
    if #redis.call('XRANGE', queue, id, id) > 0 then
      redis.call('XCLAIM', queue, 'q', me, 0, id, 'JUSTID')
    end
  else
    lost[#lost + 1] = id
  end
end
return lost
