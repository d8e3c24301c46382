-- event_deliver: counts the delivery of an event that was delivered before, just before it is handed out again.
--
-- KEYS[1] queue
-- ARGV[1] consumer
-- ARGV[2] its id
-- ARGV[3] how often it is delivered, this time included
-- returns: 1, or 0 if the consumer no longer holds it.
local queue, me, id = KEYS[1], ARGV[1], ARGV[2]
local pending = redis.pcall('XPENDING', queue, 'q', id, id, 1, me)
if type(pending) ~= 'table' or pending.err or not pending[1] then
  return 0
end
if #redis.call('XRANGE', queue, id, id) == 0 then
  redis.call('XACK', queue, 'q', id) -- the queue was full and dropped it
  return 0
end
redis.call('XCLAIM', queue, 'q', me, 0, id, 'RETRYCOUNT', ARGV[3], 'JUSTID')
return 1
