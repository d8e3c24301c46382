-- event_answer: takes answers for deliveries that a receipt names; one of an earlier delivery changes nothing.
--
-- KEYS[1] queue
-- KEYS[2] counters
-- KEYS[3] dead letters
-- ARGV[1] name of the subscription
-- ARGV[2] consumer
-- ARGV[3] `ack` for those that were handled, `renew` for those that are worked on still, `release` for those that others
--         may have at once, `bury` for those that cannot be handled
-- ARGV[4] of a release: the queue's bell
-- ARGV[5] of a release: how many deliveries do not count: 1 if nobody has tried, else 0
-- ARGV[6] of a burial: why: failed, unreadable
-- ARGV[7] of a burial: what went wrong last
-- ARGV[8] of a burial: about so many dead letters are kept
-- ARGV[9...] per delivery the event's id and how often it was handed out then
-- returns: of each that no longer counts its place, from 0.
local queue, me, what = KEYS[1], ARGV[2], ARGV[3]

--- @include "lib/bury"
--- @include "lib/held"

local dropped, given = 0, false
local answers = {
  ack = function(id)
    dropped = dropped + redis.call('XACK', queue, 'q', id) - redis.call('XDEL', queue, id)
  end,
  renew = function(id)
    keep(queue, me, id)
  end,
  release = function(id, deliveries)
    give_back(queue, me, id, deliveries - tonumber(ARGV[5]))
    given = true
  end,
  bury = function(id, deliveries)
    bury(queue, KEYS[3], id, {
      why = ARGV[6], deliveries = deliveries, said = ARGV[7], consumer = me, most = ARGV[8],
    })
  end,
}
local answer, lost = answers[what], {}
for i = 9, #ARGV, 2 do
  local id, deliveries = ARGV[i], tonumber(ARGV[i + 1])
  local pending = redis.pcall('XPENDING', queue, 'q', id, id, 1, me)
  if type(pending) ~= 'table' or pending.err or not pending[1] or pending[1][4] ~= deliveries then
    lost[#lost + 1] = (i - 9) / 2
  else
    answer(id, deliveries)
  end
end
if dropped > 0 then
  -- The queue was full and dropped them while their consumer had them: they were not lost after all.
  redis.pcall('HINCRBY', KEYS[2], ARGV[1] .. ':oldest', -dropped)
end
if given then
  redis.pcall('PUBLISH', ARGV[4], 'c')
end
return lost
