-- event_claim: takes over what consumers left lying, and forgets consumers that left nothing.
--
-- KEYS[1] queue
-- ARGV[1] consumer
-- ARGV[2] take what was not touched for so many ms
-- ARGV[3] at most so many events
-- ARGV[4] forget consumers that were not seen for so many ms
-- returns: 1 if there may be more, else 0, then per event its id, how often it was delivered and its envelope; or the
--          text GONE.
-- errors: GONE
--
-- Taking over counts no delivery: event_deliver does, when an event is handed out.
local queue, me, idle_ms, most = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local call = redis.call

local consumers = redis.pcall('XINFO', 'CONSUMERS', queue, 'q')
if type(consumers) == 'table' and consumers.err then
  return 'GONE' -- neither queue nor group
end
for i = 1, #consumers do
  local facts = {}
  for j = 1, #consumers[i], 2 do
    facts[consumers[i][j]] = consumers[i][j + 1]
  end
  if facts.name ~= me and tonumber(facts.pending) == 0 and tonumber(facts.idle) > tonumber(ARGV[4]) then
    call('XGROUP', 'DELCONSUMER', queue, 'q', facts.name)
  end
end

local pending = call('XPENDING', queue, 'q', 'IDLE', idle_ms, '-', '+', most)
local found = { #pending == most and 1 or 0 }
for i = 1, #pending do
  local id = pending[i][1]
  local entry = call('XRANGE', queue, id, id)[1]
  if entry then
    call('XCLAIM', queue, 'q', me, 0, id, 'JUSTID')
    found[#found + 1] = id
    found[#found + 1] = pending[i][4]
    found[#found + 1] = entry[2][2] or ''
  else
    call('XACK', queue, 'q', id) -- the queue was full and dropped it
  end
end
return found
