-- event_answer: takes answers for deliveries that a receipt names; one of an earlier delivery changes nothing.
--
-- KEYS[1] queue
-- KEYS[2] counters
-- ARGV[1] name of the subscription
-- ARGV[2] consumer
-- ARGV[3] `ack` for those that were handled, `renew` for those that are worked on still
-- ARGV[4...] per delivery the event's id and how often it was handed out then
-- returns: of each that no longer counts its place, from 0.
local queue, me, acked = KEYS[1], ARGV[2], ARGV[3] == 'ack'
local lost, dropped = {}, 0
for i = 4, #ARGV, 2 do
  local id = ARGV[i]
  local pending = redis.pcall('XPENDING', queue, 'q', id, id, 1, me)
  if type(pending) ~= 'table' or pending.err or not pending[1] or pending[1][4] ~= tonumber(ARGV[i + 1]) then
    lost[#lost + 1] = (i - 4) / 2
  elseif acked then
    dropped = dropped + redis.call('XACK', queue, 'q', id) - redis.call('XDEL', queue, id)
  else
    redis.call('XCLAIM', queue, 'q', me, 0, id, 'JUSTID')
  end
end
if dropped > 0 then
  -- The queue was full and dropped them while their consumer had them: they were not lost after all.
  redis.pcall('HINCRBY', KEYS[2], ARGV[1] .. ':oldest', -dropped)
end
return lost
