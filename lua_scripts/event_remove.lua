-- event_remove: ends a durable subscription; what it had still to handle is gone.
--
-- KEYS[1] subscriptions
-- KEYS[2] its queue
-- KEYS[3] its dead letters
-- KEYS[4] idle marks
-- KEYS[5] counters
-- ARGV[1] name
-- ARGV[2] the queue's bell
-- returns: 1, or 0 if there was none.
local name = ARGV[1]
local was = redis.call('HDEL', KEYS[1], name)
redis.call('UNLINK', KEYS[2], KEYS[3])
redis.call('HDEL', KEYS[4], name)
redis.call('HDEL', KEYS[5], name .. ':oldest', name .. ':newest')
redis.pcall('PUBLISH', ARGV[2], 'x')
return was
