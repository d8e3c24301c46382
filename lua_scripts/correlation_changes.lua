-- correlation_changes: log entries of a correlation's commits, without the values.
--
-- KEYS[1] list of the revisions of its commits
-- KEYS[2] log stream of the shard
-- ARGV[1] how many of the list to skip
-- ARGV[2] most to read
-- returns: how many of the list were read; per revision the revision (10 bytes) and the entry's `c` (payloads left out)
--          and `m`, both false if the entry was trimmed.
--- @include "lib/bytes"
local MOST_FRAMES = 5000
local skip, frames = tonumber(ARGV[1]), 0
local revisions = redis.call('LRANGE', KEYS[1], skip, skip + tonumber(ARGV[2]) - 1)

-- The changes of an entry as if their class kept payloads out of the log (llmspell_dist/changes.py has the layout).
local function without_payloads(c)
  if byte(c, 1) ~= 1 then
    return c
  end
  local parts, at = { '\1' }, 2
  while at + 38 <= #c do
    local op, _, _, _, _, k1, k2, p1, p2, p3, p4, s1, s2 = byte(c, at, at + 12)
    local stop = at + 38 + s1 * 256 + s2 + k1 * 256 + k2
    parts[#parts + 1] = char(op < 128 and op + 128 or op) .. sub(c, at + 1, stop)
    at = stop + 1
    if op < 128 then
      at = at + ((p1 * 256 + p2) * 256 + p3) * 256 + p4
    end
    frames = frames + 1
  end
  return table.concat(parts)
end

local found = { 0 }
for i = 1, #revisions do
  local revision = revisions[i]
  local entry
  if #revision == 10 then
    local id = format('%.0f-%.0f', u48(revision, 1), u32(revision, 7))
    entry = redis.call('XRANGE', KEYS[2], id, id)[1]
  end
  local c, m = false, false
  if entry then
    local fields = entry[2]
    for j = 1, #fields, 2 do
      if fields[j] == 'c' then
        c = without_payloads(fields[j + 1])
      elseif fields[j] == 'm' then
        m = fields[j + 1]
      end
    end
  end
  local n = #found
  found[n + 1], found[n + 2], found[n + 3] = revision, c, m
  found[1] = i
  if frames >= MOST_FRAMES then
    break
  end
end
return found
