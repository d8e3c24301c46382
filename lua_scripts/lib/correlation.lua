-- What is kept of a correlation: a stream of what belongs to it, a list of the revisions of its commits, both for seven
-- days after the last of either, and its place among the correlations of the shard by when it was last active. All by
-- `pcall`: nothing that is only remembered may stop what it remembers. `prefix` ends with a colon.
local CORRELATION_MS, CORRELATION_ENTRIES = 604800000, 10000

-- The id as it stands in keys (llmspell_dist/keys.py): percent-encoded, but for letters, digits and "_.-~".
local function correlation_name(id)
  return (string.gsub(id, '[^A-Za-z0-9_.~-]', function(c)
    return string.format('%%%02X', string.byte(c))
  end))
end

-- Server time may be text or a number.
local function correlation_active(prefix, name, ms)
  redis.pcall('PEXPIRE', prefix .. 'corr:' .. name, CORRELATION_MS)
  redis.pcall('PEXPIRE', prefix .. 'corr:' .. name .. ':log', CORRELATION_MS)
  redis.pcall('ZADD', prefix .. 'corrs', ms, name)
end

-- Remembers packed revisions of commits.
local function note_commits(prefix, name, ms, revisions)
  local list = prefix .. 'corr:' .. name .. ':log'
  local length = redis.pcall('RPUSH', list, unpack(revisions))
  if type(length) == 'number' and length > CORRELATION_ENTRIES then
    redis.pcall('LTRIM', list, -CORRELATION_ENTRIES, -1)
  end
  correlation_active(prefix, name, ms)
end

-- Remembers one thing: its kind (a letter) and its versioned bytes; `after`, if it is text: the packed revision of the
-- last commit before it. Returns the stream's reply: an id, or an error.
local function note_correlated(prefix, name, kind, bytes, after)
  local stream = prefix .. 'corr:' .. name
  if type(after) == 'string' then
    return redis.pcall('XADD', stream, 'MAXLEN', '~', CORRELATION_ENTRIES, '*', 'k', kind, 'b', bytes, 'a', after)
  end
  return redis.pcall('XADD', stream, 'MAXLEN', '~', CORRELATION_ENTRIES, '*', 'k', kind, 'b', bytes)
end
