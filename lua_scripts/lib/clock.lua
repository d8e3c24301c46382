--- @include "lib/bytes"
-- Server time, read at most once a script and only if something asks for it.
local now_ms
local function now()
  if not now_ms then
    local t = redis.call('TIME')
    now_ms = t[1] * 1000 + floor(t[2] / 1000)
  end
  return now_ms
end
