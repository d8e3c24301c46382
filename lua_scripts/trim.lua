-- trim: shortens the log to what is to be kept, but not past a hold; past the cap a hold breaks and is marked.
--
-- KEYS[1] log stream of the shard
-- KEYS[2] ctl: the shard's settings, with the holds as fields `hold:<name>`
-- ARGV[1] most entries to keep
-- ARGV[2] most age in ms
-- ARGV[3] cap: most entries to keep for a hold
-- ARGV[4] most entries to remove in this call
-- returns: entries removed, entries left, the name of a hold that broke or nil, of the slowest hold or nil,
--          1 if more is to be removed.
--- @include "lib/clock"
--- @include "lib/revision"
local log, ctl = KEYS[1], KEYS[2]
local keep, age, cap, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local length = redis.call('XLEN', log)

local function before(a, b)
  local a_ms, a_seq = string.match(a, '^(%d+)-(%d+)$')
  local b_ms, b_seq = string.match(b, '^(%d+)-(%d+)$')
  a_ms, b_ms = tonumber(a_ms), tonumber(b_ms)
  return a_ms < b_ms or (a_ms == b_ms and tonumber(a_seq) < tonumber(b_seq))
end

-- The oldest hold that has not broken.
local function slowest_hold()
  local fields, name, at = redis.call('HGETALL', ctl), nil, nil
  for i = 1, #fields, 2 do
    local held = string.match(fields[i], '^hold:(.*)$')
    if held and (not at or before(fields[i + 1], at)) then
      name, at = held, fields[i + 1]
    end
  end
  return name, at
end

local hold, hold_at = slowest_hold()
local broken = false
if hold and length > cap then
  redis.call('HDEL', ctl, 'hold:' .. hold)
  redis.call('HSET', ctl, 'broken:' .. hold, hold_at)
  broken = hold
  hold, hold_at = slowest_hold()
end

local aged = format('%.0f-0', math.max(0, now() - age))
local removed = 0
if not hold then
  removed = redis.call('XTRIM', log, 'MAXLEN', '=', math.max(keep, length - most))
  local too_old = redis.call('XTRIM', log, 'MINID', '~', aged, 'LIMIT', most)
  local more = (length - most > keep or too_old >= most) and 1 or 0
  removed = removed + too_old
  return { removed, length - removed, broken, false, more }
end

-- With a hold the cut must be known as an id, to be compared with it.
local cut = aged
local excess, id = math.min(length - keep, most, 1000), nil
if excess > 0 then
  local entries = redis.call('XRANGE', log, '-', '+', 'COUNT', excess + 1)
  id = entries[#entries][1]
  if before(cut, id) then
    cut = id
  end
end
if before(hold_at, cut) then
  cut = hold_at
end
removed = redis.call('XTRIM', log, 'MINID', '=', cut)
return { removed, length - removed, broken, hold, cut == id and length - removed > keep and 1 or 0 }
