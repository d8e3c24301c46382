-- One scope's part of a log entry: the frames as an entry of its own, and the revision that the scope had before.
-- Nil if the entry does not touch the scope. It stands alone, for commit.lua takes it in without lib/bytes.
local function frames_of(frames, text)
  local at, named, older, ours, foreign = 2, '', nil, {}, false
  while at <= #frames do
    local op, _, _, _, _, k1, k2, p1, p2, p3, p4, s1, s2 = byte(frames, at, at + 12)
    local body, scope_size = at + 39, s1 * 256 + s2
    if scope_size > 0 then
      named, body = sub(frames, body, body + scope_size - 1), body + scope_size
    end
    local after = body + k1 * 256 + k2
    if op < 128 then
      after = after + ((p1 * 256 + p2) * 256 + p3) * 256 + p4
    end
    if named == text then
      older = older or sub(frames, at + 23, at + 32)
      ours[#ours + 1] = sub(frames, at, after - 1)
    else
      foreign = true
    end
    at = after
  end
  if not older then
    return nil
  end
  -- Each run of frames begins with the scope's name, so that runs can be put together as they are.
  return foreign and '\1' .. table.concat(ours) or frames, older
end

local function id_of(revision)
  local a, b, c, d, e, f, g, h, i, j = byte(revision, 1, 10)
  return format('%.0f-%.0f', ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f,
    ((g * 256 + h) * 256 + i) * 256 + j)
end
