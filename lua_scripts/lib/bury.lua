-- bury(queue, dead, id, letter): moves an event out of its queue to the dead letters; `letter` has the fields why,
-- deliveries, said, consumer and most. Returns its id there, empty if the queue was full and dropped the event.
local function bury(queue, dead, id, letter)
  local entry = redis.call('XRANGE', queue, id, id)[1]
  local buried = ''
  if entry then
    buried = redis.call('XADD', dead, 'MAXLEN', '~', letter.most, '*', 'b', entry[2][2] or '', 'r', letter.why,
      'n', letter.deliveries, 'e', letter.said, 'c', letter.consumer, 'i', id)
  end
  redis.call('XACK', queue, 'q', id)
  redis.call('XDEL', queue, id)
  return buried
end
