-- event_fetch: gives a consumer the next events of a queue; if there are none, it notes that the bell is waited for.
--
-- KEYS[1] queue
-- KEYS[2] idle: the subscriptions of which a consumer waits for the bell
-- ARGV[1] consumer
-- ARGV[2] name of the subscription
-- ARGV[3] at most so many events
-- ARGV[4] about so many bytes
-- ARGV[5] id of the last event that it was given: what it holds after that was in an answer that was lost
-- ARGV[6] `own` for nothing but what it holds, else empty
-- returns: the id to go on from, then per event its id, its counted deliveries and its envelope; or the text GONE if
--          there is no such subscription.
-- errors: GONE
local queue, idle = KEYS[1], KEYS[2]
local consumer, left, bytes, cursor = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local found, ghosts = { cursor }, 0

local function gone(said)
  return string.find(said, 'NOGROUP', 1, true) or string.find(said, 'requires the key to exist', 1, true) -- fakeredis
end

local function add(id, deliveries, envelope)
  found[#found + 1] = id
  found[#found + 1] = deliveries
  found[#found + 1] = envelope
  left, bytes = left - 1, bytes - #envelope
end

-- What it holds. Not by XREADGROUP, which would count a delivery each time.
while left > 0 and bytes > 0 do
  local step = math.min(left, 32)
  local held = redis.pcall('XPENDING', queue, 'q', '(' .. cursor, '+', step, consumer)
  if type(held) ~= 'table' or held.err then
    break
  end
  for i = 1, #held do
    local id = held[i][1]
    local entry = redis.call('XRANGE', queue, id, id)[1]
    if entry then
      redis.call('XCLAIM', queue, 'q', consumer, 0, id, 'JUSTID') -- touched, so that nobody takes it
      add(id, held[i][4], entry[2][2] or '')
    else
      redis.call('XACK', queue, 'q', id) -- the queue was full and dropped it
      ghosts = ghosts + 1
    end
    cursor = id
  end
  if ghosts > 2000 then
    found[1] = cursor
    return found
  elseif #held < step then
    break
  end
end
if ARGV[6] == 'own' then
  found[1] = cursor
  return found
end

-- New ones, in small steps, since Redis can limit the entries of an answer and not their bytes.
while left > 0 and bytes > 0 do
  local step = math.min(left, 32)
  local reply = redis.pcall('XREADGROUP', 'GROUP', 'q', consumer, 'COUNT', step, 'STREAMS', queue, '>')
  if type(reply) == 'table' and reply.err then
    local said = tostring(reply.err)
    return gone(said) and 'GONE' or redis.error_reply(said)
  end
  local entries = reply and reply[1] or {}
  if type(entries) == 'string' then
    entries = reply[2] -- fakeredis gives scripts of clients with RESP3 a flattened map
  else
    entries = entries[2] or {}
  end
  for i = 1, #entries do
    add(entries[i][1], 1, entries[i][2][2] or '')
    cursor = entries[i][1]
  end
  if #entries < step then
    break
  end
end
found[1] = cursor
if #found == 1 then
  redis.pcall('HSET', idle, ARGV[2], 1) -- a server that is full refuses: then it is asked now and then
end
return found
