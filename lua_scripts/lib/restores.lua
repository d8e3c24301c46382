--- @include "lib/clock"
-- What a restore laid down and did not put in place goes, a bounded number of scopes a call; elements by way of the
-- trash. Whether more is left. The next call goes on where this one ended (field c): one that begins anew would only
-- find the buckets that were emptied before it.
local function clean_restore(restores, trash, prefix, id, most)
  local registry = prefix .. ':restore:' .. id
  local page = redis.call('HSCAN', registry, redis.call('HGET', registry, 'c') or '0', 'COUNT', most)
  local found = page[2]
  for i = 1, #found, 2 do
    local name, about = found[i], found[i + 1]
    if name ~= 'r' and name ~= 's' and name ~= 'c' then
      local text, aside = string.match(about, '^([^\n]*)\n[^\n]*\n(.?)$')
      if text then -- else it was put in place
        local staged = registry .. ':' .. name
        local generations = staged .. ':g'
        if redis.call('EXISTS', generations) == 1 then
          local left = (aside == 'a' and staged or prefix .. ':' .. text) .. ':g:' .. id .. '-' .. name
          redis.call('RENAME', generations, left)
          redis.call('SADD', trash, left)
        end
        redis.call('UNLINK', staged, staged .. ':ttl')
      end
      redis.call('HDEL', registry, name)
    end
  end
  if redis.call('HLEN', registry) > redis.call('HEXISTS', registry, 'r') + redis.call('HEXISTS', registry, 's')
    + redis.call('HEXISTS', registry, 'c') then
    redis.call('HSET', registry, 'c', page[1])
    return true
  end
  redis.call('UNLINK', registry)
  redis.call('ZREM', restores, id)
  return false
end
