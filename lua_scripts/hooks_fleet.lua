-- hooks_fleet: says that a process is there and which hooks it has for the fleet; forgets those that fell silent.
--
-- KEYS[1] hash: process id to the moment it was last heard of (15 digits, ms) and what it says; `$gen` changes with
--         every change, `$swept` is when the silent were looked for last
-- ARGV[1] id of the process
-- ARGV[2] what it says of itself; empty: it leaves
-- ARGV[3] after how many ms a silent process is forgotten
-- ARGV[4] channel on which a change is told
-- ARGV[5] the generation that the process knows; empty: none
-- returns: server time in ms, the generation, and all processes as a flat list; nil for the list if the process knows
--          this generation.
--- @include "lib/clock"
local fleet, process, said, silent = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local at, changed = now(), false
local before = redis.call('HGET', fleet, process)
if said == '' then
  changed = redis.call('HDEL', fleet, process) > 0
else
  changed = not before or sub(before, 16) ~= said
  redis.call('HSET', fleet, process, format('%015.0f', at) .. said)
end
local swept = tonumber(redis.call('HGET', fleet, '$swept') or '0')
if math.abs(at - swept) >= silent / 3 then
  redis.call('HSET', fleet, '$swept', format('%.0f', at))
  local all = redis.call('HGETALL', fleet)
  for i = 1, #all, 2 do
    if sub(all[i], 1, 1) ~= '$' and at - tonumber(sub(all[i + 1], 1, 15)) > silent then
      redis.call('HDEL', fleet, all[i])
      changed = true
    end
  end
end
local generation = redis.call('HGET', fleet, '$gen')
if changed or not generation then
  generation = format('%.0f', at) .. ':' .. process .. ':' .. redis.call('HINCRBY', fleet, '$count', 1)
  redis.call('HSET', fleet, '$gen', generation)
end
redis.call('PEXPIRE', fleet, silent * 10)
if changed then
  redis.pcall('PUBLISH', ARGV[4], generation)
end
if generation == ARGV[5] then
  return { format('%.0f', at), generation, false }
end
return { format('%.0f', at), generation, redis.call('HGETALL', fleet) }
