-- commit: carries out a group of independent commits, each of them whole or not at all.
--
-- KEYS[1] log stream of the shard
-- KEYS[2] due: sorted set of the shard's scopes
-- KEYS[3] ring: the client's last operations with their outcomes
-- KEYS[4...] the scopes' hashes
-- ARGV[1] 8 bytes: the client's id; then 2 bytes: number of items; then 1 byte: 1 to renew the ring's expiry
-- ARGV[2...] per scope: its printed name
-- ARGV[n...] per item: head (19 bytes: flags 1, conditions 2, changes 2, sequence 6, fingerprint 8), log metadata;
--            per condition: head (13 bytes: mode 1, revision 10, scope 2), key;
--            per change: head (20 bytes: op 1, kind and class 1, flags 1, schema 2, key length 2, payload length 4,
--            ttl mode 1, ttl ms 6, scope 2), key, payload (see lib/op_*.lua)
-- returns: per item its outcome as text. Success: the revision, then the results of its changes, separated by spaces
--          (the revision is "-" if nothing had to change). Otherwise a code and facts:
-- errors: CONFLICT KIND CLASS OVERFLOW STAGED CORRUPT UNKNOWN REUSED FAILED
--
-- Order within an item: operation id, conditions, types and limits of everything to be written, log entry, data.
-- Nothing that follows the log entry can be refused by the server: it was either read before, or is exempt.
--- @include "lib/op_set"
--- @include "lib/plan"
local COPIED, RING_SLOTS, RING_EXPIRY_MS = 10, 1024, 3600000

-- Set aside, because defining functions costs time in every call, and most calls only set.
local function other_operations()
  --- @include "lib/op_delete"
  --- @include "lib/op_ttl"
  --- @include "lib/op_increment"
  --- @include "lib/op_append"
  --- @include "lib/op_merge"
  --- @include "lib/op_adopt"
  --- @include "lib/op_clear"
  --- @include "lib/op_copy"
  return {
    [DELETE] = op_delete, [TTL] = op_ttl, [COUNTED] = op_increment, [APPENDED] = op_append,
    [MERGED] = op_merge, [ADOPTED] = op_adopt, [CLEARED] = op_clear, [COPIED] = op_copy,
  }
end
local operations

local function refused(code, old, change)
  local kind_class = old and byte(old, 2) or 0
  return format('%s change=%d kind=%d class=%d revision=%s', code, change, floor(kind_class / 16), kind_class % 16,
    show_revision(old and sub(old, 6, 15) or NONE10))
end

local log, due, ring = KEYS[1], KEYS[2], KEYS[3]
local trash = sub(log, 1, -4) .. 'trash'
local client = sub(ARGV[1], 1, 8)
local item_count, renew_ring = u16(ARGV[1], 9), byte(ARGV[1], 11)

-- Pass 1: which records are needed. Each scope is read once.
local scopes = {}
for i = 4, #KEYS do
  scopes[i - 4] = open_scope(KEYS[i], ARGV[i - 2])
end
local first_item = #KEYS - 1
local slots, at = {}, first_item
for n = 1, item_count do
  local head = ARGV[at]
  slots[n] = u48(head, 6) % RING_SLOTS
  local conditions, changes = u16(head, 2), u16(head, 4)
  at = at + 2
  for _ = 1, conditions do
    want(scopes[u16(ARGV[at], 12)], ARGV[at + 1])
    at = at + 2
  end
  for _ = 1, changes do
    local change, key = ARGV[at], ARGV[at + 1]
    want(scopes[u16(change, 19)], key)
    if byte(change, 1) == COPIED then
      want(scopes[u16(ARGV[at + 2], 1)], key)
    end
    at = at + 3
  end
end
local seen = redis.call('HMGET', ring, unpack(slots))
for i = 0, #KEYS - 4 do
  fetch_scope(scopes[i])
end

-- The outcome that an earlier arrival of the same operation had, or why it cannot be told; nil: not seen.
local function earlier_outcome(stored, head)
  if stored then
    local sequence, given = u48(stored, 1), u48(head, 6)
    if sequence == given then
      if sub(stored, 7, 14) ~= sub(head, 12, 19) then
        return 'REUSED'
      end
      return sub(stored, 15)
    elseif sequence > given then
      return 'UNKNOWN'
    end
  end
  -- flags: 1 a retry, 2 this client's ring must exist
  if byte(head, 1) % 4 == 3 and redis.call('EXISTS', ring) == 0 then
    return 'UNKNOWN'
  end
  return nil
end

-- Conditions: 1 the revision is this, 2 absent, 3 present, 4 the scope's revision is this.
local function holds(mode, s, key, expected)
  if mode == 4 then
    return s.rev == expected, s.rev
  end
  local r = live(s, key)
  if mode == 2 then
    return not r, r and sub(r, 6, 15) or NONE10
  elseif mode == 3 then
    return r, NONE10
  end
  local actual = r and sub(r, 6, 15) or NONE10
  return actual == expected, actual
end

local function carry_out(head, from)
  local conditions, changes = u16(head, 2), u16(head, 4)
  local pos, conflicts = from + 2, nil
  for i = 1, conditions do
    local condition = ARGV[pos]
    local ok, actual = holds(byte(condition, 1), scopes[u16(condition, 12)], ARGV[pos + 1], sub(condition, 2, 11))
    if not ok then
      conflicts = (conflicts or 'CONFLICT') .. format(' %d=', i - 1) .. show_revision(actual)
    end
    pos = pos + 2
  end
  if conflicts then
    return conflicts, pos + changes * 3
  end
  local after = pos + changes * 3
  local plans, results = {}, ''
  for i = 1, changes do
    local change, key = ARGV[pos], ARGV[pos + 1]
    local s = scopes[u16(change, 19)]
    local old, gone, problem = live(s, key)
    local p
    if not problem then
      local op = byte(change, 1)
      if op == SET then
        p = op_set(s, change, key, ARGV[pos + 2], old, gone)
      else
        operations = operations or other_operations()
        p, problem = operations[op](s, change, key, ARGV[pos + 2], old, gone, scopes)
      end
    end
    if problem then
      return refused(problem, old, i - 1), after
    end
    if p.result then
      results = results .. ' ' .. p.result
    end
    if p.apply then
      p.trash = trash
      plans[#plans + 1] = p
      if p.also then
        plans[#plans + 1] = p.also
      end
    end
    pos = pos + 3
  end
  if #plans == 0 then
    return '-' .. results, after
  end
  local freeing = floor(byte(head, 1) / 8) % 2 == 1
  local id, said = commit_plans(plans, log, due, ARGV[from + 1], client .. sub(head, 6, 11), freeing)
  if not id then
    return 'FAILED ' .. said, after
  end
  return id .. results, after, true
end

-- Pass 2: one item after the other; later ones see what earlier ones did.
local outcomes, kept, wrote = {}, {}, false
at = first_item
for n = 1, item_count do
  local head = ARGV[at]
  local outcome = earlier_outcome(seen[n], head)
  if outcome then
    at = at + 2 + u16(head, 2) * 2 + u16(head, 4) * 3
  else
    local applied
    outcome, at, applied = carry_out(head, at)
    wrote = wrote or applied
    if applied or sub(outcome, 1, 8) == 'CONFLICT' then
      kept[#kept + 1] = slots[n]
      kept[#kept + 1] = sub(head, 6, 19) .. outcome
    end
  end
  outcomes[n] = outcome
end

if wrote then
  for i = 0, #KEYS - 4 do
    local s = scopes[i]
    if s.dirty then
      flush_scope(s, due)
      redis.pcall('PUBLISH', s.key, s.rev .. s.first_rev)
    end
  end
end
if #kept > 0 then
  redis.pcall('HSET', ring, unpack(kept))
  if renew_ring == 1 then
    redis.call('PEXPIRE', ring, RING_EXPIRY_MS)
  end
end
return outcomes
