-- commit: carries out a group of independent commits, each of them whole or not at all.
--
-- KEYS[1] log stream of the shard
-- KEYS[2] due: sorted set of the shard's scopes
-- KEYS[3] ring: the client's last operations with their outcomes
-- KEYS[4...] the scopes' hashes, then the leases that items carry
-- ARGV[1] 8 bytes: the client's id; then 2 bytes: number of items; then 1 byte: 1 to renew the ring's expiry; then
--         2 bytes: number of leases
-- ARGV[2...] per scope: its printed name
-- ARGV[n...] per item: head (19 bytes: flags 1, conditions 2, changes 2, sequence 6, fingerprint 8), log metadata;
--            if flag 16 is set its fences, one after the other: lease 2, scope 2 (its scope, if the fence is the scope's
--            own and the item has the scope; else 65,535), token 8, owner length 1, owner;
--            per condition: head (13 bytes: mode 1, revision 10, scope 2), key;
--            per change: head (20 bytes: op 1, kind and class 1, flags 1, schema 2, key length 2, payload length 4,
--            ttl mode 1, ttl ms 6, scope 2), key, payload (see lib/op_*.lua)
-- returns: per item its outcome as text. Success: the revision, then the results of its changes, separated by spaces
--          (the revision is "-" if nothing had to change). Otherwise a code and facts:
-- errors: CONFLICT KIND CLASS OVERFLOW STAGED CORRUPT UNKNOWN REUSED FAILED FENCED UNLEASED
--
-- Order within an item: operation id, fences, conditions, types and limits of everything to be written, log entry, data.
-- Nothing that follows the log entry can be refused by the server: it was either read before, or is exempt.
--
-- The whole runs for every write of every client, and a server defines a script's functions anew in each call (about
-- as long as an HSET for twenty of them). So what a plain set needs stands in line here, and everything else is
-- defined by `rest()` when the first item asks for it.
local byte, char, sub, floor, format = string.byte, string.char, string.sub, math.floor, string.format
local call = redis.call
local NONE10, NONE6 = '\0\0\0\0\0\0\0\0\0\0', '\0\0\0\0\0\0'
local SET, COMPOSITE, BULK, EPHEMERAL = 1, 48, 2, 3

local log, due, ring, group = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local high, low = byte(group, 12, 13)
local lease_count = high * 256 + low
local scope_count = #KEYS - 3 - lease_count
local scopes, wanted, before = {}, {}, {}
local rest

-- Pass 1: which records are needed. Each scope is read once.
for i = 1, scope_count do
  scopes[i] = {
    key = KEYS[i + 3], text = ARGV[i + 1], recs = {}, writes = {}, rev = NONE10, count = 0, size = 0, tail = false,
  }
  wanted[i] = { '$$' }
end
local slots, at = {}, scope_count + 2
high, low = byte(group, 9, 10)
local item_count = high * 256 + low
for n = 1, item_count do
  local flags, c1, c2, g1, g2, _, _, _, _, s5, s6 = byte(ARGV[at], 1, 11)
  slots[n] = s5 % 4 * 256 + s6 -- sequence modulo 1,024
  at = at + (flags >= 16 and 3 or 2)
  for _ = 1, c1 * 256 + c2 do
    local a, b = byte(ARGV[at], 12, 13)
    local i, key = a * 256 + b + 1, ARGV[at + 1]
    if scopes[i].recs[key] == nil then
      scopes[i].recs[key] = false
      wanted[i][#wanted[i] + 1] = key
    end
    at = at + 2
  end
  for _ = 1, g1 * 256 + g2 do
    local a, b = byte(ARGV[at], 19, 20)
    local i, key = a * 256 + b + 1, ARGV[at + 1]
    if scopes[i].recs[key] == nil then
      scopes[i].recs[key] = false
      wanted[i][#wanted[i] + 1] = key
    end
    if byte(ARGV[at], 1) == 10 then -- copy: the key of the source scope too
      a, b = byte(ARGV[at + 2], 1, 2)
      i = a * 256 + b + 1
      if scopes[i].recs[key] == nil then
        scopes[i].recs[key] = false
        wanted[i][#wanted[i] + 1] = key
      end
    end
    at = at + 3
  end
end

-- The ring's field `born` is the sequence of the first operation in it: what is older cannot be told from it.
slots[item_count + 1] = 'born'
local seen = call('HMGET', ring, unpack(slots))
local born = seen[item_count + 1]
for i = 1, scope_count do
  local s, fields = scopes[i], wanted[i]
  local recs = s.recs
  for first = 1, #fields, 1000 do
    local got = call('HMGET', s.key, unpack(fields, first, math.min(first + 999, #fields)))
    for j = 1, #got do
      recs[fields[first + j - 1]] = got[j]
    end
  end
  local meta = recs['$$']
  if meta and (#meta < 32 or byte(meta, 1) ~= 1) then
    for key in pairs(recs) do
      recs[key] = '' -- of a scope whose own record is damaged, every one counts as damaged
    end
  elseif meta then
    local a, b, c, d, e, f, g, h, k, l = byte(meta, 12, 21)
    s.rev, s.tail = sub(meta, 2, 11), sub(meta, 22)
    s.count = ((a * 256 + b) * 256 + c) * 256 + d
    s.size = ((((e * 256 + f) * 256 + g) * 256 + h) * 256 + k) * 256 + l
    if byte(meta, 32) % 2 == 1 then -- writes need the lease whose name follows
      s.guard = s.key .. ':lease:' .. sub(meta, 34, 33 + byte(meta, 33))
    end
  else
    s.new, s.tail = true, '\0\0\0\0\0\0\0\0\0\0\0'
  end
  before[i] = s.rev
end

-- Leases are read before anything is written, by `pcall`: a key of another type is no lease.
local check_fences
if lease_count > 0 then
  local holders, time = {}, call('TIME')
  local now_ms = time[1] * 1000 + floor(time[2] / 1000)
  for i = 1, lease_count do
    local r = redis.pcall('HGET', KEYS[3 + scope_count + i], 'x')
    holders[i] = type(r) == 'string' and r ~= '' and r
  end

  -- nil if a lease holds: it is there, with token and owner as given, not over, and not older than what wrote before.
  local function why_not(r, key, token, owner, s)
    if not r then
      return call('EXISTS', key) == 1 and 'ended' or 'lost'
    elseif sub(r, 1, 8) ~= token then
      return 'token'
    end
    local a, b, c, d, e, f = byte(r, 9, 14)
    local h1, h2 = byte(r, 25, 26)
    local owner_at = 27 + (h1 * 256 + h2) * 12
    if ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f <= now_ms then
      return 'expired'
    elseif sub(r, owner_at, owner_at + #owner - 1) ~= owner then
      return 'owner'
    end
    if not s or sub(s.tail, 1, 8) == token then
      return nil
    end
    for i = 1, 8 do -- byte by byte: Lua compares strings as the locale sorts them
      local seen, given = byte(s.tail, i), byte(token, i)
      if given > seen then
        s.fence = token
        break
      elseif given < seen then
        return 'below'
      end
    end
  end

  -- The fences of an item: nil and the keys of the leases that it holds, or why it is refused.
  -- Those of the item before need no second look: nothing that happens in between can end a lease.
  local checked, checked_held
  check_fences = function(fences)
    if fences == checked then
      return nil, checked_held
    end
    local held, pos, n = {}, 1, 0
    while pos <= #fences do
      local a, b, c, d = byte(fences, pos, pos + 3)
      local stop = pos + 12 + byte(fences, pos + 12)
      local i = a * 256 + b + 1
      local key, s = KEYS[3 + scope_count + i], scopes[c * 256 + d + 1]
      local why = why_not(holders[i], key, sub(fences, pos + 4, pos + 11), sub(fences, pos + 12, stop), s)
      if why then
        local current, text = why == 'below' and s.tail or holders[i], '0'
        if current then
          local _, t2, t3, t4, t5, t6, t7, t8 = byte(current, 1, 8)
          text = format('%.0f', (((((t2 * 256 + t3) * 256 + t4) * 256 + t5) * 256 + t6) * 256 + t7) * 256 + t8)
        end
        return format('FENCED fence=%d why=%s current=%s', n, why, text)
      end
      held[key], pos, n = true, stop + 1, n + 1
    end
    checked, checked_held = fences, held
    return nil, held
  end
end

local function load_rest()
  --- @include "lib/rest"
  rest = {
    earlier_outcome = earlier_outcome, unseen_retry = unseen_retry, check = check, plan = plan, add_frames = add_frames,
    refused_entry = refused_entry, flush = flush_scope, memory_full = false,
  }
  return rest
end

-- Only when somebody watches a scope that was written.
local tell
local function load_bell()
  --- @include "lib/bell"
  return tell
end

-- Pass 2: one item after the other; later ones see what earlier ones did.
local outcomes, kept, wrote, correlated = {}, {}, false, nil
local told, told_meta, told_operation -- the entry of one plain set, for those who watch
local last_ms, packed_ms
at = scope_count + 2
for n = 1, item_count do
  local first, head = at, ARGV[at]
  local flags, c1, c2, g1, g2, s1, s2, s3, s4, s5, s6 = byte(head, 1, 11)
  local conditions, changes = c1 * 256 + c2, g1 * 256 + g2
  local pos, held = at + 2, nil
  if flags >= 16 then
    pos = pos + 1
  end
  at = pos + conditions * 2 + changes * 3
  -- What its slot in the ring holds: usually the operation 1,024 before it, and that means nothing.
  local outcome
  if seen[n] then
    local r1, r2, r3, r4, r5, r6 = byte(seen[n], 1, 6)
    if ((((r1 * 256 + r2) * 256 + r3) * 256 + r4) * 256 + r5) * 256 + r6
      >= ((((s1 * 256 + s2) * 256 + s3) * 256 + s4) * 256 + s5) * 256 + s6 then
      outcome = (rest or load_rest()).earlier_outcome(seen[n], head)
    end
  elseif flags % 2 == 1 then
    outcome = (rest or load_rest()).unseen_retry(born, head)
  end
  local keep = not outcome
  if keep and flags >= 16 then
    outcome, held = check_fences(ARGV[first + 2])
  end
  if not outcome and conditions > 0 then
    outcome = (rest or load_rest()).check(pos, conditions)
    pos = pos + conditions * 2
  end

  local plans, planned, results = {}, 0, ''
  if not outcome then
    for i = 1, changes do
      local change, key = ARGV[pos], ARGV[pos + 1]
      local op, kind_class, codec, _, _, _, _, _, _, _, _, ttl_mode = byte(change, 1, 12)
      local a, b = byte(change, 19, 20)
      local s = scopes[a * 256 + b + 1]
      if s.guard and not (held and held[s.guard])
        and not (op == 11 and s.guard == s.key .. ':lease:' .. ARGV[pos + 2]) then -- a policy that is there already
        outcome = 'UNLEASED scope=' .. s.text .. ' lease=' .. sub(s.guard, #s.key + 8)
        break
      end
      local old, version, old_kind, old_flags = s.recs[key], 1, 0, 0
      if old then
        if #old >= 21 or (#old >= 15 and byte(old, 3) % 2 == 0) then
          version, old_kind, old_flags = byte(old, 1, 3)
        else
          version = 0 -- damaged
        end
      end
      local class = kind_class % 16
      if op == SET and ttl_mode == 0 and not s.new and version == 1 and old_kind < COMPOSITE and old_flags % 4 < 2
        and class ~= BULK and class ~= EPHEMERAL then
        planned = planned + 1
        plans[planned] = {
          s = s, key = key, old = old, payload = ARGV[pos + 2], head = change, codec = codec, created = old_flags % 2,
        }
      else
        local found, problem = (rest or load_rest()).plan(s, change, key, ARGV[pos + 2], i - 1, held)
        if problem then
          outcome = problem
          break
        end
        for j = 1, #found do
          local p = found[j]
          if p.result then
            results = results .. ' ' .. p.result
          end
          if p.apply then
            planned = planned + 1
            plans[planned] = p
          end
        end
      end
      pos = pos + 3
    end
  end

  if not outcome and planned == 0 then
    outcome, keep = '-' .. results, false
  elseif not outcome then
    -- The log entry: one frame a change (llmspell_dist/changes.py has the layout). A frame of the same scope as the
    -- frame before does not repeat its name.
    local frames, named, entry = { '\1' }, nil, nil
    for i = 1, planned do
      local p = plans[i]
      if planned == 1 and not p.apply then
        -- One plain set: its entry is put together at once, for every copy of the payload costs.
        local s, old = p.s, p.old
        local text = s.text
        entry = '\1' .. sub(p.head, 1, 11) .. char((#text - #text % 256) / 256, #text % 256)
          .. (old and sub(old, 6, 15) or NONE10) .. s.rev .. NONE6 .. text .. p.key .. p.payload
      elseif p.apply then
        named = rest.add_frames(frames, p, named)
      else
        local s, old = p.s, p.old
        local length, text = '\0\0', ''
        if named ~= s then
          named, text = s, s.text
          length = char((#text - #text % 256) / 256, #text % 256)
        end
        frames[#frames + 1] = sub(p.head, 1, 11) .. length .. (old and sub(old, 6, 15) or NONE10) .. s.rev .. NONE6
          .. text .. p.key .. p.payload
      end
    end
    local meta, operation = ARGV[first + 1], sub(group, 1, 8) .. sub(head, 6, 11)
    local freeing, id = flags % 16 >= 8, nil
    if rest and rest.memory_full and not freeing then
      outcome = 'FAILED ' .. rest.memory_full
    else
      id = redis.pcall('XADD', log, '*', 'c', entry or table.concat(frames), 'm', meta, 'o', operation)
      if type(id) ~= 'string' then
        id, outcome = (rest or load_rest()).refused_entry(id, entry or table.concat(frames), meta, operation, freeing)
      end
    end
    if id then
      local seq
      if last_ms and sub(id, 1, #last_ms) == last_ms then
        seq = tonumber(sub(id, #last_ms + 1))
      else
        local dash = string.find(id, '-', 1, true)
        local ms = tonumber(sub(id, 1, dash - 1))
        last_ms, seq = sub(id, 1, dash), tonumber(sub(id, dash + 1))
        packed_ms = char(floor(ms / 1099511627776), floor(ms / 4294967296) % 256,
          floor(ms / 16777216) % 256, floor(ms / 65536) % 256, floor(ms / 256) % 256, ms % 256)
      end
      local revision
      if seq < 256 then
        revision = packed_ms .. '\0\0\0' .. char(seq)
      else
        revision = packed_ms .. char(floor(seq / 16777216), floor(seq / 65536) % 256, floor(seq / 256) % 256, seq % 256)
      end
      for i = 1, planned do
        local p = plans[i]
        if p.apply then
          p.apply(p, revision)
        else
          local s, key, old, record = p.s, p.key, p.old, nil
          if old then
            local created = p.created == 1 and sub(old, 16, 21) or sub(old, 6, 11)
            if created == packed_ms then
              record = '\1' .. sub(p.head, 2, 5) .. revision .. p.payload
            else
              record = '\1' .. sub(p.head, 2, 2) .. char(p.codec + 1) .. sub(p.head, 4, 5) .. revision .. created .. p.payload
            end
            s.size = s.size + #record - #old
          else
            record = '\1' .. sub(p.head, 2, 5) .. revision .. p.payload
            s.count, s.size = s.count + 1, s.size + #record + #key
          end
          s.recs[key], s.writes[key] = record, record
        end
      end
      if byte(meta, 3) == 99 and byte(meta, 2) == 161 then -- begins with `c`, a correlation id: MessagePack text
        local kind, long = byte(meta, 4, 5)
        local id_at = kind < 192 and 5 or kind == 217 and 6 or 7
        local correlation = sub(meta, id_at, id_at - 1
          + (kind < 192 and kind - 160 or kind == 217 and long or long * 256 + byte(meta, 6)))
        correlated = correlated or {}
        local revisions = correlated[correlation] or {}
        correlated[correlation], revisions[#revisions + 1] = revisions, revision
      end
      for i = 1, planned do
        local s = plans[i].s
        s.rev = revision
        if held and s.fence then
          s.tail, s.fence = s.fence .. sub(s.tail, 9), nil
        end
      end
      outcome, wrote = id .. results, true
      told, told_meta, told_operation = entry, meta, operation
    else
      keep = false
    end
  elseif sub(outcome, 1, 8) ~= 'CONFLICT' then
    keep = false
  end
  if keep then
    kept[#kept + 1] = slots[n]
    kept[#kept + 1] = sub(head, 6, 19) .. outcome
  end
  outcomes[n] = outcome
end

if wrote then
  for i = 1, scope_count do
    local s = scopes[i]
    if s.rev ~= before[i] then
      if rest or s.new then
        (rest or load_rest()).flush(s, due)
      else
        local count, size = s.count, s.size
        local args, m = {
          '$$',
          '\1' .. s.rev .. char(floor(count / 16777216), floor(count / 65536) % 256, floor(count / 256) % 256, count % 256,
            floor(size / 1099511627776), floor(size / 4294967296) % 256, floor(size / 16777216) % 256,
            floor(size / 65536) % 256, floor(size / 256) % 256, size % 256) .. s.tail,
        }, 2
        for key, record in pairs(s.writes) do
          args[m + 1], args[m + 2], m = key, record, m + 2
        end
        for first = 1, m, 2000 do
          call('HSET', s.key, unpack(args, first, math.min(first + 1999, m)))
        end
      end
      local heard = redis.pcall('PUBLISH', s.key, s.rev .. before[i])
      if heard ~= 0 and type(heard) == 'number' then
        if told and item_count == 1 and #told <= 16384 and #told_meta < 65536 then
          -- One plain set, which is at hand: no need to look into the log.
          local n, m = #told, #told_meta
          redis.pcall('PUBLISH', s.key, '\1' .. s.rev .. before[i] .. s.rev .. char(0, 0, floor(n / 256), n % 256) .. told
            .. char(0, 0, floor(m / 256), m % 256) .. told_meta .. '\0\0\0\14' .. told_operation)
        else
          tell = tell or load_bell()
          tell(log, s, before[i])
        end
      end
    end
  end
end
if correlated then
  --- @include "lib/correlation"
  for id, revisions in pairs(correlated) do
    note_commits(sub(log, 1, -4), correlation_name(id), sub(last_ms, 1, -2), revisions)
  end
end
if not born then
  local _, _, _, _, _, s1, s2, s3, s4, s5, s6 = byte(ARGV[scope_count + 2], 1, 11)
  kept[#kept + 1] = 'born'
  kept[#kept + 1] = format('%.0f', ((((s1 * 256 + s2) * 256 + s3) * 256 + s4) * 256 + s5) * 256 + s6)
end
if #kept > 0 then
  redis.pcall('HSET', ring, unpack(kept))
end
if not born or byte(group, 11) == 1 then
  call('PEXPIRE', ring, 3600000)
end
return outcomes
