-- event_ack: takes events that were handled out of a queue.
--
-- KEYS[1] queue
-- KEYS[2] counters
-- ARGV[1] name of the subscription
-- ARGV[2...] ids of the events, at most 1,000
-- returns: how many of them somebody had to handle still.
local queue = KEYS[1]
local done = redis.call('XACK', queue, 'q', unpack(ARGV, 2))
local left = redis.call('XDEL', queue, unpack(ARGV, 2))
if done > left then
  -- The queue was full and dropped them while their consumer had them: they were not lost after all.
  redis.pcall('HINCRBY', KEYS[2], ARGV[1] .. ':oldest', left - done)
end
return done
