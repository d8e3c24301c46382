-- correlation_trim: forgets the correlations that are beyond what a shard keeps, those first that were active longest ago.
--
-- KEYS[1] correlations by their last activity
-- ARGV[1] prefix of the shard's keys
-- ARGV[2] how many to keep
-- ARGV[3] most to forget in this call
-- returns: how many went; 1 if more are to go.
--- @include "lib/clock"
--- @include "lib/correlation"
local most = tonumber(ARGV[3])
-- First those whose keys have expired by themselves.
local gone = redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', format('%.0f', now() - CORRELATION_MS))
local over = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[2])
if over > 0 then
  local names = redis.call('ZRANGE', KEYS[1], 0, math.min(over, most) - 1)
  for i = 1, #names do
    local key = ARGV[1] .. 'corr:' .. names[i]
    redis.call('UNLINK', key, key .. ':log')
    redis.call('ZREM', KEYS[1], names[i])
  end
  gone = gone + #names
end
return { gone, over > most and 1 or 0 }
