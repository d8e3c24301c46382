-- event_queues: tells of durable subscriptions how they stand, a page of them at a time.
--
-- KEYS[1] subscriptions: name to `1 capacity overflow pattern`, as event_subscribe writes them
-- KEYS[2] counters
-- ARGV[1] what every key of the shard begins with
-- ARGV[2] where to go on, `0` to begin
-- ARGV[3] about so many at a time
-- returns: where to go on, `0` at the end, then per subscription its name, its definition, how many events are in its
--          queue, how many of them consumers hold, how many consumers those are, how many dead letters there are and how
--          many events were dropped. One may come twice.
--
-- A queue that was lost has neither length nor group until something is published or somebody subscribes again.
local registry, counters, prefix = KEYS[1], KEYS[2], ARGV[1]
local call = redis.call

local page = call('HSCAN', registry, ARGV[2], 'COUNT', ARGV[3])
local found, names = { page[1] }, page[2]
for i = 1, #names, 2 do
  local name = names[i]
  local queue = prefix .. 'evq:' .. name
  local pending = redis.pcall('XPENDING', queue, 'q')
  local held, holding = 0, 0
  if type(pending) == 'table' and not pending.err and pending[1] > 0 then
    held, holding = pending[1], #pending[4]
  end
  local dropped = call('HMGET', counters, name .. ':oldest', name .. ':newest')
  local told = {
    name, names[i + 1], call('XLEN', queue), held, holding, call('XLEN', prefix .. 'evdead:' .. name),
    (tonumber(dropped[1]) or 0) + (tonumber(dropped[2]) or 0),
  }
  for j = 1, #told do
    found[#found + 1] = told[j]
  end
end
return found
