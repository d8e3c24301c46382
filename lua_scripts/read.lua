-- read: the records of some keys, or of all, as of one moment, judged by the server's clock.
--
-- KEYS[1] the scope's hash
-- ARGV[1] most bytes of elements to return with a list, map or large value; a bigger one comes as its head alone
-- ARGV[2] 0: the keys that follow; else all keys, if the scope has at most this many
-- ARGV[3] most bytes that the whole scope may have, if all are asked for
-- ARGV[4...] keys
-- returns: the server's time in ms, the scope's own record `$$` or nil, then per key: record or nil, elements or nil.
--          If all are asked for: key, record, elements for each.
-- errors: TOOLARGE count=… bytes=… (as the third element of the answer)
--- @include "lib/composite"
local most, all = tonumber(ARGV[1]), tonumber(ARGV[2])
local s = open_scope(KEYS[1], '')

local function elements(r)
  local kind = floor(byte(r, 2) / 16)
  if kind < LIST then
    return false
  end
  local _, _, start = record_times(r)
  local count, size, generation = read_head(r, start)
  if size > most then
    return false
  end
  if kind == MAP then
    return redis.call('HGETALL', generation_key(s, generation))
  end
  return redis.call('LRANGE', generation_key(s, generation), 0, count - 1)
end

local function add(answer, key, named)
  local r, _, damaged = live(s, key)
  if damaged then
    r = s.recs[key]
  elseif not r and named then
    return
  end
  if named then
    answer[#answer + 1] = key
  end
  answer[#answer + 1] = r or false
  answer[#answer + 1] = r and not damaged and elements(r) or false
end

local answer = { format('%.0f', now()), redis.call('HGET', s.key, '$$') }
if all == 0 then
  for i = 4, #ARGV do
    want(s, ARGV[i])
  end
  fetch_scope(s)
  for i = 4, #ARGV do
    add(answer, ARGV[i])
  end
  return answer
end

local meta = answer[2]
if not meta then
  return answer
end
if #meta < 32 or byte(meta, 1) ~= 1 then
  return answer
end
local count, size = u32(meta, 12), u48(meta, 16)
if count > all or size > tonumber(ARGV[3]) then
  return { answer[1], answer[2], format('TOOLARGE count=%.0f bytes=%.0f', count, size) }
end
local everything = redis.call('HGETALL', s.key)
for i = 1, #everything, 2 do
  s.recs[everything[i]] = everything[i + 1]
end
for i = 1, #everything, 2 do
  if everything[i] ~= '$$' then
    add(answer, everything[i], true)
  end
end
return answer
