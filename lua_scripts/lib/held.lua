-- keep(queue, consumer, id): an event that a consumer holds is worked on still: its time begins anew. One that a full
-- queue has dropped meanwhile is left as it is: claimed, it would not be held any more, and its acknowledgement says
-- that it was not lost after all.
local function keep(queue, consumer, id)
  if #redis.call('XRANGE', queue, id, id) > 0 then
    redis.call('XCLAIM', queue, 'q', consumer, 0, id, 'JUSTID')
  end
end

-- give_back(queue, consumer, id, deliveries): others may have an event at once; so often was it handed out.
local function give_back(queue, consumer, id, deliveries)
  redis.call('XCLAIM', queue, 'q', consumer, 0, id, 'IDLE', 2000000000, 'RETRYCOUNT', deliveries, 'JUSTID')
end
