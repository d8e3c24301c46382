--- @include "lib/frames_of"
-- For those who watch a scope, right behind the bell: what its commits after `before` did, if that is little.
-- Version (1), revision (10), revision before (10); then per entry: revision (10), and with their lengths (4) before
-- them frames, metadata, operation. Without entries it was too much: the log has them.
local TOLD_BYTES = 16384

local function sized(text)
  local n = #text
  return char(floor(n / 16777216), floor(n / 65536) % 256, floor(n / 256) % 256, n % 256) .. text
end

local function tell(log, s, before)
  local told, size, at = {}, 0, s.rev
  while at ~= before do
    local id = id_of(at)
    local entry = redis.call('XRANGE', log, id, id)[1]
    local fields = entry and entry[2]
    local frames, older
    if fields and size + #fields[2] <= 2 * TOLD_BYTES then
      frames, older = frames_of(fields[2], s.text)
    end
    if older then
      told[#told + 1] = at .. sized(frames) .. sized(fields[4]) .. sized(fields[6])
      size = size + #told[#told]
    end
    if not older or size > TOLD_BYTES then
      told = {}
      break
    end
    at = older
  end
  local parts = { '\1', s.rev, before }
  for i = #told, 1, -1 do
    parts[#parts + 1] = told[i]
  end
  redis.pcall('PUBLISH', s.key, table.concat(parts))
end
