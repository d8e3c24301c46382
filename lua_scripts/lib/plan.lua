--- @include "lib/log"
-- From planned changes to one commit: the frames are laid out, the entry is written, then the changes are applied.
local function add_frames(p, frames, named)
  local s = p.s
  local before = p.old or p.gone
  local previous = p.old_rev or (before and sub(before, 6, 15)) or NONE10
  if p.gone then
    frames[#frames + 1] = frame(
      frame_head(EXPIRED, byte(p.gone, 2), 0, sub(p.gone, 4, 5), p.key, 0), s, named, previous, p.old_expires, p.key, '')
  end
  frames[#frames + 1] = frame(p.log_head, s, named, previous, p.expires, p.key, p.logged)
end

-- Gives the id of the entry, or nil and what the server said.
local function commit_plans(plans, log, due, meta, operation, freeing)
  local frames, named = { '\1' }, {}
  for i = 1, #plans do
    add_frames(plans[i], frames, named)
  end
  local id, said = append_entry(log, due, concat(frames), meta, operation, freeing)
  if not id then
    return nil, said
  end
  local revision = pack_revision(id)
  for i = 1, #plans do
    local p = plans[i]
    p.apply(p, revision)
  end
  for i = 1, #plans do
    plans[i].s.rev = revision
  end
  return id
end
