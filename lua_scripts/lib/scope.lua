--- @include "lib/record"
-- A scope during one script call: its `$$` record, the records read so far, and what is to be written at the end.
-- Writes wait until all items are done, so that a group touches each hash once.
local META_NEW = '\1' .. string.rep('\0', 31)
local COMPOSITE = 48 -- kind and class of a record from here on: its elements lie in a sibling key
local SHORTEST = { [0] = 15, 21, 21, 27 } -- bytes of a record's header by its flags for created and expiry
local GRACE_MS = 3000 -- how long a replaced generation stays for readers that hold its head
local EMPTY_SCOPE_MS = 86400000 -- when the sweeper looks whether an empty scope can be forgotten

local function open_scope(key, text)
  return {
    key = key, text = text, wanted = { '$$' }, recs = {}, writes = {}, dirty = false, new = false, due = false,
    expiries = false, rev = false, first_rev = false, count = 0, size = 0, tail = false,
  }
end

local function want(s, key)
  if s.recs[key] == nil then
    s.recs[key] = false
    s.wanted[#s.wanted + 1] = key
  end
end

local function fetch_scope(s)
  local wanted, recs = s.wanted, s.recs
  for first = 1, #wanted, 1000 do
    local last = math.min(first + 999, #wanted)
    local got = redis.call('HMGET', s.key, unpack(wanted, first, last))
    for i = first, last do
      recs[wanted[i]] = got[i - first + 1]
    end
  end
  local meta = recs['$$']
  recs['$$'] = nil
  if not meta then
    s.new, meta = true, META_NEW
  elseif #meta < 32 or byte(meta, 1) ~= 1 then
    s.damaged, meta = true, META_NEW -- its records can be read, but not written, because nobody could count them
  end
  s.rev, s.count, s.size, s.tail = sub(meta, 2, 11), u32(meta, 12), u48(meta, 16), sub(meta, 22)
  s.first_rev = s.rev
end

-- The record of a key as a reader sees it (nil if there is none), and the raw one if it has expired.
local function live(s, key)
  local r = s.recs[key]
  if not r then
    return nil
  end
  local version, kind_class, flags = byte(r, 1, 3)
  flags = flags and flags % 4
  if version ~= 1 or not flags or #r < SHORTEST[flags] + (kind_class >= COMPOSITE and 11 or 0) or kind_class >= 96 then
    return nil, nil, 'CORRUPT'
  end
  if flags >= 2 and u48(r, flags == 3 and 22 or 16) <= now() then
    return nil, r
  end
  return r
end

-- What a replaced or removed composite leaves behind: its elements go after a short while.
local function drop_generation(s, r)
  local _, _, start = record_times(r)
  local generation = sub(r, start + 10)
  redis.call('PEXPIRE', s.key .. ':p:' .. generation, GRACE_MS)
  redis.call('SREM', s.key .. ':g', generation)
  s.size = s.size - u48(r, start + 4)
end

-- expires: six bytes, or '' for never
local function index_expiry(s, key, expires)
  s.expiries = s.expiries or {}
  if expires == '' then
    s.expiries[key] = false
    return
  end
  local at = u48(expires, 1)
  s.expiries[key] = at
  if not s.due or at < s.due then
    s.due = at
  end
end

local function put_record(s, key, record, old)
  s.recs[key], s.writes[key], s.dirty = record, record, true
  if old then
    s.size = s.size + #record - #old
  else
    s.count, s.size = s.count + 1, s.size + #record + #key
  end
end

local function remove_record(s, key, old)
  s.recs[key], s.writes[key], s.dirty = false, false, true
  s.count, s.size = s.count - 1, s.size - #old - #key
end

local function call_in_chunks(command, key, args, most)
  for first = 1, #args, most do
    redis.call(command, key, unpack(args, first, math.min(first + most - 1, #args)))
  end
end

local function flush_expiries(s)
  local add, remove = {}, {}
  for key, at in pairs(s.expiries) do
    if at then
      add[#add + 1] = format('%.0f', at)
      add[#add + 1] = key
    else
      remove[#remove + 1] = key
    end
  end
  call_in_chunks('ZADD', s.key .. ':ttl', add, 2000)
  call_in_chunks('ZREM', s.key .. ':ttl', remove, 1000)
  s.expiries = false
end

local function flush_scope(s, due_key)
  local args, n, gone = { '$$', '\1' .. s.rev .. p32(s.count) .. p48(s.size) .. s.tail }, 2, {}
  for key, record in pairs(s.writes) do
    if record then
      args[n + 1], args[n + 2], n = key, record, n + 2
    else
      gone[#gone + 1] = key
    end
  end
  call_in_chunks('HSET', s.key, args, 2000)
  call_in_chunks('HDEL', s.key, gone, 1000)
  if s.expiries then
    flush_expiries(s)
  end
  if s.count == 0 and not s.due then
    s.due = now() + EMPTY_SCOPE_MS
  end
  if s.due then
    redis.call('ZADD', due_key, 'LT', format('%.0f', s.due), s.text)
  elseif s.new then
    redis.call('ZADD', due_key, '+inf', s.text)
  end
end
