-- event_publish: puts events into the queues of the durable subscriptions that mean them, and tells those who listen now.
--
-- KEYS[1] subscriptions: name to `1 capacity overflow pattern`, as event_subscribe writes them
-- KEYS[2] ring: the publisher's last operations with their outcomes
-- KEYS[3] counters
-- KEYS[4] idle: the subscriptions of which a consumer waits for the bell
-- ARGV[1] what every key and channel of the shard begins with
-- ARGV[2] number of the operation; asked again with it, nothing happens twice
-- ARGV[3] about how many entries a correlation's stream keeps
-- ARGV[4] how long it is kept after its last entry, in ms
-- ARGV[5] `first` if no events of this publisher wait for room, or all of them come again from here on; else empty
-- ARGV[6...] per event: type, key of its correlation's stream or empty, envelope
-- returns: the outcome as text, a line for each event that was not stored: its number from 0, a code, the subscription;
--          and what the server said if it refused to tell those who listen, else empty.
-- errors: FULL REJECTED UNKNOWN
--
-- All queues are looked at before anything is written, and an event goes into all queues that mean it or into none.
-- When one has to wait for room, those behind it that mean one of its queues wait too, also those of later operations:
-- the ring's field `w` has the names of these queues. So each publisher's events keep their order in every queue.
local registry, ring, counters, idle = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local prefix, operation = ARGV[1], tonumber(ARGV[2])
local call, gsub, match = redis.call, string.gsub, string.match

local slot = operation % 256
local seen = call('HGET', ring, slot)
if seen then
  local number, outcome = match(seen, '^(%d+) (.*)$')
  if tonumber(number) == operation then
    return { outcome, '' }
  elseif tonumber(number) > operation then
    return { '0 UNKNOWN -', '' }
  end
end

--- @include "lib/event_pattern"

local queues, found = {}, call('HGETALL', registry)
for i = 1, #found, 2 do
  local capacity, overflow, pattern = match(found[i + 1], '^1 (%d+) (%a+) (.+)$')
  if capacity then
    queues[#queues + 1] = {
      name = found[i], key = prefix .. 'evq:' .. found[i], capacity = tonumber(capacity), overflow = overflow,
      means = compiled(pattern), dropped = 0,
    }
  end
end

-- Queues that earlier events of this publisher wait for.
local waits, noted = {}, call('HGET', ring, 'w')
if noted and ARGV[5] == '' then
  for name in string.gmatch(noted, '%S+') do
    waits[name] = true
  end
end
local waiting = false

-- Pass 1: where each event goes. Events of one type go to the same queues.
local plans, of_type, streams, outcome = {}, {}, {}, {}
for n = 0, (#ARGV - 5) / 3 - 1 do
  local at = 6 + n * 3
  local event_type, correlation = ARGV[at], ARGV[at + 1]
  local wanted = of_type[event_type]
  if not wanted then
    wanted = {}
    for i = 1, #queues do
      if queues[i].means(event_type) then
        wanted[#wanted + 1] = queues[i]
      end
    end
    of_type[event_type] = wanted
  end
  if correlation ~= '' and not streams[correlation] then
    call('XLEN', correlation) -- a key of another type is found here
    streams[correlation] = redis.pcall('LINDEX', correlation .. ':log', -1)
  end
  local refused, full
  for i = 1, #wanted do
    local q = wanted[i]
    q.length = q.length or call('XLEN', q.key)
    if waits[q.name] and not refused then
      refused, full = n .. ' FULL ' .. q.name, true
    elseif q.length >= q.capacity and not refused then
      if q.overflow == 'block' then
        refused, full = n .. ' FULL ' .. q.name, true
      elseif q.overflow == 'reject' then
        refused = n .. ' REJECTED ' .. q.name
      end
    end
  end
  if refused then
    outcome[#outcome + 1] = refused
    if full then
      waiting = true
      for i = 1, #wanted do
        waits[wanted[i].name] = true
      end
    end
  else
    local into = {}
    for i = 1, #wanted do
      local q = wanted[i]
      if q.length < q.capacity then
        q.length = q.length + 1
        into[#into + 1] = q
      elseif q.overflow == 'oldest' then
        -- More than one if the capacity was lowered, or dead letters were put back.
        q.dropped = q.dropped + q.length - q.capacity + 1
        q.length = q.capacity
        into[#into + 1] = q
      else
        q.dropped = q.dropped + 1
      end
    end
    plans[#plans + 1] = { at = at, into = into }
  end
end

-- Pass 2: write. The first write meets a server that is full, before anything is changed.
local wrote = false
for i = 1, #plans do
  local plan = plans[i]
  local envelope = ARGV[plan.at + 2]
  for j = 1, #plan.into do
    local q = plan.into[j]
    if q.overflow == 'oldest' then
      call('XADD', q.key, 'MAXLEN', '=', q.capacity, '*', 'b', envelope)
    else
      call('XADD', q.key, '*', 'b', envelope)
    end
    q.wrote, wrote = true, true
  end
  local correlation = ARGV[plan.at + 1]
  if correlation ~= '' then
    -- With the last commit before it, so that the two can be put in order within a millisecond.
    local after = streams[correlation]
    if type(after) == 'string' then
      call('XADD', correlation, 'MAXLEN', '~', ARGV[3], '*', 'k', 'e', 'b', envelope, 'a', after)
    else
      call('XADD', correlation, 'MAXLEN', '~', ARGV[3], '*', 'k', 'e', 'b', envelope)
    end
    wrote = true
  end
end
if wrote then
  local time = call('TIME')
  local ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  for correlation in pairs(streams) do
    call('PEXPIRE', correlation, ARGV[4])
    redis.pcall('PEXPIRE', correlation .. ':log', ARGV[4])
    redis.pcall('ZADD', prefix .. 'corrs', ms, string.sub(correlation, #prefix + #'corr:' + 1))
  end
end
local bells = {}
for i = 1, #queues do
  local q = queues[i]
  if q.dropped > 0 then
    call('HINCRBY', counters, q.name .. ':' .. q.overflow, q.dropped)
  end
  if q.wrote and call('HDEL', idle, q.name) == 1 then
    bells[#bells + 1] = q.name
  end
end
local text = table.concat(outcome, '\n')
-- By `pcall`: a server that is full takes no note, and nothing was stored then that could be stored twice.
redis.pcall('HSET', ring, slot, string.format('%.0f', operation) .. ' ' .. text)
if waiting then
  local names = {}
  for name in pairs(waits) do
    names[#names + 1] = name
  end
  redis.pcall('HSET', ring, 'w', table.concat(names, ' '))
elseif noted and ARGV[5] == 'first' then
  call('HDEL', ring, 'w')
end
if slot == 0 or not seen then
  call('PEXPIRE', ring, 3600000)
end
local said = ''
for i = 1, #bells do
  local heard = redis.pcall('PUBLISH', prefix .. 'evbell:' .. bells[i], 'n')
  if type(heard) == 'table' then
    said = tostring(heard.err)
  end
end
for i = 1, #plans do
  local heard = redis.pcall('PUBLISH', prefix .. 'ev:' .. ARGV[plans[i].at], ARGV[plans[i].at + 2])
  if type(heard) == 'table' then
    said = tostring(heard.err)
    break
  end
end
return { text, said }
