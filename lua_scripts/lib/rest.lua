--- @include "lib/op_set"
--- @include "lib/op_delete"
--- @include "lib/op_ttl"
--- @include "lib/op_increment"
--- @include "lib/op_append"
--- @include "lib/op_merge"
--- @include "lib/op_adopt"
--- @include "lib/op_clear"
--- @include "lib/op_copy"
--- @include "lib/op_policy"
--- @include "lib/log"
-- What `commit` needs for anything but a plain set; it reads `scopes`, `log`, `due` and `ring` of commit.lua.
local OPERATIONS = {
  [SET] = op_set, [DELETE] = op_delete, [TTL] = op_ttl, [COUNTED] = op_increment, [APPENDED] = op_append,
  [MERGED] = op_merge, [ADOPTED] = op_adopt, [CLEARED] = op_clear, [10] = op_copy, [POLICY] = op_policy,
}

-- The outcome that an earlier arrival of the same operation had; a later one in its slot means that it is forgotten.
local function earlier_outcome(stored, head)
  if sub(stored, 1, 6) ~= sub(head, 6, 11) then
    return 'UNKNOWN'
  elseif sub(stored, 7, 14) ~= sub(head, 12, 19) then
    return 'REUSED'
  end
  return sub(stored, 15)
end

-- A retry that finds nothing of itself has not happened, unless the ring that would tell is gone or began after it.
-- flags: 2 this client's ring must exist
local function unseen_retry(born, head)
  if born then
    return tonumber(born) > u48(head, 6) and 'UNKNOWN' or nil
  end
  return byte(head, 1) % 4 == 3 and 'UNKNOWN' or nil
end

-- Conditions: 1 the revision is this, 2 absent, 3 present, 4 the scope's revision is this.
local function holds(mode, s, key, expected)
  if mode == 4 then
    return s.rev == expected, s.rev
  end
  local r = live(s, key)
  local actual = r and sub(r, 6, 15) or NONE10
  if mode == 2 then
    return not r, actual
  elseif mode == 3 then
    return r, actual
  end
  return actual == expected, actual
end

-- nil if every condition holds, else CONFLICT with the positions of those that do not and what is there.
local function check(pos, conditions)
  local conflicts
  for i = 1, conditions do
    local condition = ARGV[pos]
    local ok, actual = holds(byte(condition, 1), scopes[u16(condition, 12) + 1], ARGV[pos + 1], sub(condition, 2, 11))
    if not ok then
      conflicts = (conflicts or 'CONFLICT') .. format(' %d=', i - 1) .. show_revision(actual)
    end
    pos = pos + 2
  end
  return conflicts
end

-- Why a key beside the records cannot be written: it holds something else. Nil if it can.
local function wrong_type(command, key)
  local reply = redis.pcall(command, key)
  if type(reply) == 'table' and reply.err then
    return 'FAILED ' .. tostring(reply.err) .. ' (' .. key .. ')'
  end
  return nil
end

-- Once per scope, before anything of it is written: the keys that a change may write beside the hash.
local function unfit(s)
  if s.unfit == nil then
    s.unfit = wrong_type('ZCARD', due) or wrong_type('ZCARD', s.key .. ':ttl') or wrong_type('SCARD', s.key .. ':g') or false
  end
  return s.unfit
end

-- The plans of one change, or why it is refused.
local function plan(s, change, key, payload, position, held)
  local refusal = unfit(s)
  if byte(change, 1) == 10 then
    local source = scopes[u16(payload, 1) + 1]
    if source.guard and byte(payload, 3) == 1 and not (held and held[source.guard]) then
      -- A move writes there too.
      return nil, 'UNLEASED scope=' .. source.text .. ' lease=' .. sub(source.guard, #source.key + 8)
    end
    refusal = refusal or unfit(source)
  elseif byte(change, 1) == CLEARED then
    refusal = refusal or wrong_type('SCARD', sub(log, 1, -4) .. 'trash')
  end
  if refusal then
    return nil, refusal
  end
  local old, gone, problem = live(s, key)
  if not problem and old and byte(old, 2) >= COMPOSITE then
    local _, _, start = record_times(old)
    local commands = { [LIST] = 'LLEN', [MAP] = 'HLEN', [BLOB] = 'LLEN' }
    refusal = wrong_type(commands[floor(byte(old, 2) / 16)], generation_key(s, sub(old, start + 10)))
    if refusal then
      return nil, refusal
    end
  end
  local p
  if not problem then
    p, problem = OPERATIONS[byte(change, 1)](s, change, key, payload, old, gone, scopes)
  end
  if problem then
    local kind_class = old and byte(old, 2) or 0
    return nil, format('%s change=%d kind=%d class=%d revision=%s', problem, position, floor(kind_class / 16),
      kind_class % 16, show_revision(old and sub(old, 6, 15) or NONE10))
  end
  p.trash = sub(log, 1, -4) .. 'trash'
  return { p, p.also }
end

local function add_frames(frames, p, named)
  local s = p.s
  local earlier = p.old or p.gone
  local previous = p.old_rev or (earlier and sub(earlier, 6, 15)) or NONE10
  if p.gone then
    frames[#frames + 1] = frame(frame_head(EXPIRED, byte(p.gone, 2), 0, sub(p.gone, 4, 5), p.key, 0), s, named == s,
      previous, p.old_expires, p.key, '')
    named = s
  end
  frames[#frames + 1] = frame(p.log_head, s, named == s, previous, p.expires, p.key, p.logged)
  return s
end

-- What to do when the server refused the entry: nil and the outcome, or for what frees memory the id after all.
local function refused_entry(reply, entry, meta, operation, freeing)
  local said = tostring(reply.err)
  if string.find(said, 'OOM', 1, true) then
    rest.memory_full = said
    if freeing then
      return append_freeing(log, due, entry, meta, operation)
    end
  end
  return nil, 'FAILED ' .. said
end
