-- history: the entries of the log that changed one key, newest first, along the chains of the key and its scope.
--
-- KEYS[1] log stream of the shard
-- KEYS[2] the scope's hash
-- ARGV[1] the scope's printed name
-- ARGV[2] key
-- ARGV[3] where to go on, as the answer before said it; or empty for now
-- ARGV[4] only entries up to this moment: 10 bytes, or empty for all
-- ARGV[5] most entries to return
-- ARGV[6] most entries to look at
-- returns: why it ended ("end": there is nothing older; "trimmed": the log no longer reaches back; "more"),
--          where to go on (a revision; behind it, if it is one that the key had, the one that the scope had then), then
--          per entry: id, changes, metadata, operation.
--- @include "lib/scope"
--- @include "lib/revision"
local log, text, key, limit, budget = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[5]), tonumber(ARGV[6])
local CLEARED, RESTORED, BY_RESTORE = 9, 13, 16

local function later(a, b)
  local a_ms, b_ms = u48(a, 1), u48(b, 1)
  return a_ms > b_ms or (a_ms == b_ms and u32(a, 7) > u32(b, 7))
end

-- What a restore put there has the revision of an entry that says nothing of it: its past is that of the scope.
local cursor, scope_then = string.match(ARGV[3], '^(%S+) ?(%S*)$')
if not cursor then
  local got = redis.call('HMGET', KEYS[2], '$$', key)
  local own = got[2] and #got[2] >= 15 and byte(got[2], 3) % 32 < BY_RESTORE
  cursor, scope_then = show_revision(own and sub(got[2], 6, 15) or got[1] and sub(got[1], 2, 11) or NONE10), ''
end

-- Whether the entry changed the key, where the older ones are, and where the scope's are if that is another place.
-- Also whether it is the beginning of a restore, which is of no scope.
local function look(frames)
  local at, scope, ours, older, in_scope, named = 2, '', false, NONE10, NONE10, false
  while at <= #frames do
    local op, key_size, size, scope_size = byte(frames, at), u16(frames, at + 5), u32(frames, at + 7), u16(frames, at + 11)
    local body = at + 39
    if scope_size > 0 then
      scope = sub(frames, body, body + scope_size - 1)
      body, named = body + scope_size, true
    end
    if scope == text then
      if older == NONE10 then
        older = sub(frames, at + 23, at + 32)
      end
      if in_scope == NONE10 then
        in_scope = sub(frames, at + 23, at + 32)
      end
      if sub(frames, body, body + key_size - 1) == key then
        ours = true
        local previous = sub(frames, at + 13, at + 22)
        if previous ~= NONE10 then
          older = previous
        end
      elseif op == CLEARED or op == RESTORED then
        ours = true
      end
    end
    at = body + key_size + (op < 128 and size or 0)
  end
  return ours, older, in_scope, not named
end

local answer, found = { 'end', '' }, 0
while cursor ~= 'none' do
  if found == limit or budget == 0 then
    answer[1], answer[2] = 'more', scope_then == '' and cursor or cursor .. ' ' .. scope_then
    return answer
  end
  budget = budget - 1
  local entry = redis.call('XRANGE', log, cursor, cursor)[1]
  if not entry then
    answer[1], answer[2] = 'trimmed', cursor
    return answer
  end
  local fields = entry[2]
  local ours, older, in_scope, begins = look(fields[2])
  if ours and (ARGV[4] == '' or not later(pack_revision(cursor), ARGV[4])) then
    answer[#answer + 1], answer[#answer + 2], answer[#answer + 3], answer[#answer + 4] = entry[1], fields[2], fields[4], fields[6]
    found = found + 1
  end
  if begins and scope_then ~= '' then
    cursor, scope_then = scope_then, ''
  else
    cursor, scope_then = show_revision(older), older ~= in_scope and show_revision(in_scope) or ''
  end
end
return answer
