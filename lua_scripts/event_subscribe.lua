-- event_subscribe: enters a durable subscription, or finds it; it gets what is published from then on.
--
-- KEYS[1] subscriptions: name to `1 capacity overflow pattern`
-- KEYS[2] its queue
-- ARGV[1] name
-- ARGV[2] pattern
-- ARGV[3] capacity, or empty to leave it as it is
-- ARGV[4] overflow (block, oldest, newest, reject), or empty to leave it as it is
-- ARGV[5] capacity of a new subscription if none is given
-- ARGV[6] overflow of a new subscription if none is given
-- returns: its definition now, or a code and the pattern that it has.
-- errors: EXISTS
local registry, queue = KEYS[1], KEYS[2]
local name, pattern, capacity, overflow = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local old = redis.call('HGET', registry, name)
local old_capacity, old_overflow, old_pattern
if old then
  old_capacity, old_overflow, old_pattern = string.match(old, '^1 (%d+) (%a+) (.+)$')
  if old_pattern ~= pattern then
    return { 'EXISTS', old_pattern or '?' }
  end
end
if capacity == '' then
  capacity = old_capacity or ARGV[5]
end
if overflow == '' then
  overflow = old_overflow or ARGV[6]
end
-- Only if it is not there: a server that is full would refuse, and its consumers are what makes room.
local groups = redis.pcall('XINFO', 'GROUPS', queue)
if type(groups) ~= 'table' or groups.err or #groups == 0 then
  redis.call('XGROUP', 'CREATE', queue, 'q', '0', 'MKSTREAM')
end
local definition = '1 ' .. capacity .. ' ' .. overflow .. ' ' .. pattern
if definition ~= old then
  redis.call('HSET', registry, name, definition)
end
return { definition }
