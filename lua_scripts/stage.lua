-- stage: part of a large value, list or map is laid down before the commit that adopts it; sent twice, it is laid down once.
-- What no commit adopts goes after an hour.
--
-- KEYS[1] the generation
-- ARGV[1] list or map
-- ARGV[2] how many elements lie there already
-- ARGV[3...] elements; for a map fields and values in turn
-- returns: how many elements lie there now.
--          -1 if what was to lie there before is gone.
local start, given = tonumber(ARGV[2]), #ARGV - 2
local is_map = ARGV[1] == 'map'
local length = redis.call(is_map and 'HLEN' or 'LLEN', KEYS[1])
if is_map then
  given = given / 2
end
if length >= start + given then
  return length -- pieces that follow may have been laid down too, before the connection was lost
elseif length ~= start then
  return -1
end
for first = 3, #ARGV, 1000 do
  redis.call(is_map and 'HSET' or 'RPUSH', KEYS[1], unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
redis.call('PEXPIRE', KEYS[1], 3600000)
return redis.call(is_map and 'HLEN' or 'LLEN', KEYS[1])
