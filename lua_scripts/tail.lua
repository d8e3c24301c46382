-- tail: what happened in a scope after a revision, along the scope's chain, without the entries of other scopes.
--
-- KEYS[1] log stream of the shard
-- KEYS[2] the scope's hash
-- KEYS[3] ctl: the shard's settings
-- ARGV[1] the scope's printed name
-- ARGV[2] the revision that is known: 10 bytes; zeros for the beginning; empty to ask only where the scope is now
-- ARGV[3] the operation at that revision: 14 bytes, or empty if it is not known
-- ARGV[4] 1 if that revision is one of this scope, 0 if it may be another's
-- ARGV[5] where to go on walking back: 10 bytes, or empty for the scope's newest revision
-- ARGV[6] most entries to return
-- ARGV[7] most bytes of entries to return
-- ARGV[8] most entries to look at
-- returns: how it ended, the scope's revision, the revision of the scope that is known or to go on with, the log's
--          oldest entry if something is missing; then per entry, oldest first: id, frames, metadata, operation. Of more
--          entries than asked for only the revisions come, newest first, as one string.
--          "now": only the operation follows; "ok": all entries; "far": all revisions; "more": revisions, and more;
--          "trimmed"; "forgotten": the scope was, in between; "diverged": the log is not the one that was read before.
--- @include "lib/revision"
--- @include "lib/frames_of"
local log, text, known, exact = KEYS[1], ARGV[1], ARGV[2], ARGV[4] == '1'
local most, bytes, budget = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])

local function later(a, b)
  local a_ms, b_ms = u48(a, 1), u48(b, 1)
  return a_ms > b_ms or (a_ms == b_ms and u32(a, 7) > u32(b, 7))
end

local function entry_of(revision)
  local id = id_of(revision)
  return redis.call('XRANGE', log, id, id)[1]
end

-- Whether an entry that is not there was trimmed; and the oldest that is.
local function trimmed(revision)
  local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  return not oldest or later(pack_revision(oldest[1]), revision), oldest and oldest[1] or ''
end

local meta = redis.call('HGET', KEYS[2], '$$')
local head = meta and sub(meta, 2, 11) or NONE10
if known == '' then
  local entry = head ~= NONE10 and entry_of(head)
  return { 'now', head, head, '', entry and entry[2][6] or '' }
end

local at = ARGV[5]
if at == '' then
  at = head
  -- What was read before must still be there, unless the log was shortened since.
  if known ~= NONE10 then
    local entry = entry_of(known)
    if entry then
      local ours = frames_of(entry[2][2], text)
      if (ARGV[3] ~= '' and entry[2][6] ~= ARGV[3]) or (exact and not ours) then
        return { 'diverged', head, known, '' }
      end
      exact = exact or ours
    elseif head ~= known and not trimmed(known) then
      return { 'diverged', head, known, '' }
    elseif head == known and redis.call('XLEN', log) > 0 and not trimmed(known) then
      return { 'diverged', head, known, '' }
    end
  end
end

local function forgotten_since()
  local forgotten = redis.call('HGET', KEYS[3], 'forgotten')
  return forgotten and not later(known, pack_revision(forgotten))
end

local entries, revisions, size, ended, oldest = {}, {}, 0, nil, ''
while not ended do
  if at == known then
    ended = 'ok'
  elseif at == NONE10 then
    if known == NONE10 then
      ended = 'ok'
    elseif forgotten_since() then
      ended = 'forgotten'
    elseif exact then
      ended = 'diverged'
    elseif entry_of(known) then
      ended = 'ok'
    else
      -- Trimmed, or lost with all that the scope had: only the entry would tell.
      local _, first = trimmed(known)
      ended, oldest = 'trimmed', first
    end
  elseif not later(at, known) then
    ended = exact and 'diverged' or 'ok'
  elseif budget == 0 then
    ended = 'more'
  else
    budget = budget - 1
    local entry = entry_of(at)
    local frames, older
    if entry then
      frames, older = frames_of(entry[2][2], text)
    end
    if older then
      revisions[#revisions + 1] = at
      if entries then
        size = size + #frames
        entries[#entries + 1] = { entry[1], frames, entry[2][4], entry[2][6] }
        if #entries > most or size > bytes then
          entries = nil
        end
      end
      at = older
    else
      local gone
      gone, oldest = trimmed(at)
      ended = not entry and gone and 'trimmed' or 'diverged'
    end
  end
end

local answer = { ended, head, at, oldest }
if ended == 'more' or (ended == 'ok' or ended == 'forgotten') and not entries then
  if ended == 'ok' then
    answer[1] = 'far'
  end
  answer[5] = concat(revisions)
elseif ended == 'ok' or ended == 'forgotten' then
  for i = #entries, 1, -1 do
    local e, n = entries[i], #answer
    answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = e[1], e[2], e[3], e[4]
  end
end
return answer
