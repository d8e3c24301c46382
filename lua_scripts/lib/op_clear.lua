--- @include "lib/op_set"
--- @include "lib/revision"
-- clear: every key of the scope goes at once, whatever their number; the scope's `$$` stays.
-- Elements of lists, maps and large values are left to the sweeper. Result: how many keys there were,
-- without those that had expired.
local function apply_clear(p, revision)
  local s = p.s
  local generations = s.key .. ':g'
  if redis.call('EXISTS', generations) == 1 then
    local aside = generations .. ':' .. show_revision(revision)
    redis.call('RENAME', generations, aside)
    redis.call('SADD', p.trash, aside)
  end
  redis.call('UNLINK', s.key, s.key .. ':ttl')
  for key in pairs(s.recs) do
    s.recs[key] = false
  end
  s.writes, s.expiries, s.due = {}, false, false
  s.count, s.size, s.dirty = 0, 0, true
end

local function op_clear(s, head, key, payload)
  if s.count == 0 then
    return { result = '0' }
  end
  if s.expiries then
    flush_expiries(s) -- of earlier items of the group, which are committed
  end
  local live_keys = s.count - redis.call('ZCOUNT', s.key .. ':ttl', '-inf', format('%.0f', now()))
  return {
    s = s, key = '', expires = '', old_rev = NONE10, apply = apply_clear, result = format('%.0f', live_keys),
    log_head = frame_head(CLEARED, 0, 0, '\0\0', '', 4), logged = p32(s.count),
  }
end
