"""What the server does in one step: the scripts by which a partition changes. Standard library only.

Every script checks first and writes last: the server does not undo what a script wrote before it failed. The first key
is always the partition's record, a hash with a checksum over all of its fields.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the name by which the server knows it."""

    text: str

    @property
    def sha1(self) -> str:
        """The digest that the server calls it by."""
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


PARTITION_FIELDS: Final = ("epoch", "holder", "position", "num_snapshots", "num_parked", "last_commit")
"""The fields of a partition's record, in the order in which its checksum runs over them."""

_NAMES: Final = ", ".join(f"'{name}'" for name in PARTITION_FIELDS)

_RECORD: Final = f"""
local names = {{{_NAMES}}}
local function sum_of(part)
  local values = {{}}
  for i, name in ipairs(names) do values[i] = #part[name] .. ':' .. part[name] end
  return redis.sha1hex(table.concat(values))
end
local function read_part()
  local values = redis.call('HMGET', KEYS[1], 'sum', unpack(names))
  local part = {{}}
  for i, name in ipairs(names) do part[name] = values[i + 1] or '' end
  if not values[1] or values[1] ~= sum_of(part) then return nil end
  return part
end
local function write_part(part)
  local values = {{'sum', sum_of(part)}}
  for _, name in ipairs(names) do
    values[#values + 1] = name
    values[#values + 1] = part[name]
  end
  redis.call('HSET', KEYS[1], unpack(values))
end
local function whole(number) return string.format('%.0f', number) end
local function count_core(cores, core, change)
  if redis.call('HINCRBY', cores, core, change) <= 0 then redis.call('HDEL', cores, core) end
end
"""

# KEYS: the partition. A partition that is there stays as it is.
_MAKE: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then
  write_part({epoch = '0', holder = '', position = '0', num_snapshots = '0', num_parked = '0', last_commit = ''})
end
return {'OK'}
"""

# KEYS: the partition. ARGV: the holder.
_ACQUIRE: Final = """
local part = read_part()
if not part then return {'DAMAGED'} end
part.epoch = whole(tonumber(part.epoch) + 1)
part.holder = ARGV[1]
write_part(part)
return {'OK', part.epoch}
"""

_POINTER: Final = """
-- The object that a snapshot's record points to: '' when it has its body with it, '-' without a record, '?' when that
-- cannot be told.
local function pointer_of(key)
  local start = redis.pcall('GETRANGE', key, 0, 13)
  if start == '' then return '-' end
  if type(start) ~= 'string' or #start < 14 or string.sub(start, 1, 8) ~= 'SILTREC\\n' then return '?' end
  local b = {string.byte(start, 9, 14)}
  if b[1] * 256 + b[2] < 2 then return '' end
  local length = ((b[3] * 256 + b[4]) * 256 + b[5]) * 256 + b[6]
  local is_read, head = pcall(cjson.decode, redis.call('GETRANGE', key, 14, 13 + length))
  if not is_read or type(head) ~= 'table' or type(head.object) ~= 'string' then return '?' end
  return head.object
end
"""

# KEYS: partition, users, cores, ids, parked, payloads, the right to commit what was put; then for each snapshot its
# staged and its final key; then for each parked interaction its owner's set. ARGV: epoch, expected position, next
# position, name of the commit, first position of the window, number of snapshots, of parked, of ids, whether anything
# was put; then (owner, core) for each snapshot; (position, record, payload) for each parked interaction; (id, position)
# for each interaction taken in. The answer: a word, what it is about, and of every snapshot the pointer there is now
# and the one that was there before.
_COMMIT: Final = """
local part = read_part()
if not part then return {'DAMAGED'} end
local num_snapshots, num_parked, num_ids = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local function pointers()
  local found = {}
  for i = 0, num_snapshots - 1 do found[i + 1] = pointer_of(KEYS[9 + 2 * i]) end
  return found
end
local before = pointers()
local right = ARGV[9] == '1' and redis.call('GET', KEYS[7])
local function ended(word, detail)
  for i = 0, num_snapshots - 1 do redis.call('UNLINK', KEYS[8 + 2 * i]) end
  return {word, detail, pointers(), before}
end
if part.last_commit == ARGV[4] then
  -- Sent again because its answer was lost. What was staged for it again goes.
  if right and right ~= '' then before = cjson.decode(right) end
  return ended('OK', '')
end
if part.epoch ~= ARGV[1] then return ended('STALE', part.epoch) end
if part.position ~= ARGV[2] then return ended('CONFLICT', part.position) end
if ARGV[9] == '1' and right ~= '' then return ended('LATE', '') end
for i = 0, num_snapshots - 1 do
  if redis.call('EXISTS', KEYS[8 + 2 * i]) == 0 then return ended('UNSTAGED', '') end
end
local num_new = 0
for i = 0, num_snapshots - 1 do
  local staged, final = KEYS[8 + 2 * i], KEYS[9 + 2 * i]
  local owner, core = ARGV[10 + 2 * i], ARGV[11 + 2 * i]
  local old_core = redis.call('HGET', KEYS[2], owner)
  redis.call('RENAME', staged, final)
  redis.call('PERSIST', final)
  if old_core ~= core then
    redis.call('HSET', KEYS[2], owner, core)
    count_core(KEYS[3], core, 1)
    if old_core then count_core(KEYS[3], old_core, -1) else num_new = num_new + 1 end
  end
end
local next = 10 + 2 * num_snapshots
for i = 0, num_parked - 1 do
  local position = ARGV[next + 3 * i]
  redis.call('HSET', KEYS[5], position, ARGV[next + 3 * i + 1])
  redis.call('HSET', KEYS[6], position, ARGV[next + 3 * i + 2])
  redis.call('SADD', KEYS[8 + 2 * num_snapshots + i], position)
end
next = next + 3 * num_parked
for i = 0, num_ids - 1 do
  redis.call('ZADD', KEYS[4], 'NX', ARGV[next + 2 * i + 1], ARGV[next + 2 * i])
end
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', '(' .. ARGV[5])
part.position = ARGV[3]
part.last_commit = ARGV[4]
part.num_snapshots = whole(tonumber(part.num_snapshots) + num_new)
part.num_parked = whole(redis.call('HLEN', KEYS[5]))
write_part(part)
-- A right is for once. What it was used on is told to who asks again.
if right then redis.call('SET', KEYS[7], cjson.encode(before), 'PX', 60000) end
return ended('OK', '')
"""

# KEYS: partition, users, cores, parked, payloads, the owner's set of parked positions, the snapshot.
# ARGV: epoch, owner.
_ERASE: Final = """
local part = read_part()
if not part then return {'DAMAGED'} end
if part.epoch ~= ARGV[1] then return {'STALE', part.epoch} end
local core = redis.call('HGET', KEYS[2], ARGV[2])
local had = redis.call('UNLINK', KEYS[7])
if core then
  redis.call('HDEL', KEYS[2], ARGV[2])
  count_core(KEYS[3], core, -1)
  part.num_snapshots = whole(tonumber(part.num_snapshots) - 1)
  had = 1
end
for _, position in ipairs(redis.call('SMEMBERS', KEYS[6])) do
  redis.call('HDEL', KEYS[4], position)
  redis.call('HDEL', KEYS[5], position)
end
redis.call('UNLINK', KEYS[6])
part.num_parked = whole(redis.call('HLEN', KEYS[4]))
-- The commit before, sent again, would be one that brings the user back: it must not pass for done.
part.last_commit = ''
write_part(part)
return {'OK', had}
"""

# KEYS: partition, parked. The count and the positions, of one moment.
_PARKED: Final = """
local part = read_part()
if not part then return {'DAMAGED'} end
return {'OK', part.num_parked, redis.call('HKEYS', KEYS[2])}
"""

# KEYS: partition, users. Who has a snapshot and how many should, of one moment.
_USERS: Final = """
local part = read_part()
if not part then return {'DAMAGED'} end
return {'OK', part.num_snapshots, redis.call('HKEYS', KEYS[2])}
"""

# KEYS: partition, then snapshots.
_POINTERS: Final = """
local part = read_part()
if not part then return {'DAMAGED'} end
local found = {}
for i = 2, #KEYS do found[i - 1] = pointer_of(KEYS[i]) end
return {'OK', found}
"""

# KEYS: partition.
_READ: Final = """
local part = read_part()
if not part then return {'DAMAGED'} end
return {'OK', part.epoch, part.holder, part.position, part.num_snapshots, part.num_parked}
"""

# KEYS: an owner's keys. ARGV: name and wrapped key, for an owner who has none in use.
_MAKE_KEY: Final = """
if redis.call('HEXISTS', KEYS[1], 'current') == 0 then
  redis.call('HSET', KEYS[1], 'current', ARGV[1], ARGV[1], ARGV[2])
end
return 1
"""

# KEYS: an owner's keys.
_READ_KEY: Final = """
local name = redis.call('HGET', KEYS[1], 'current')
if not name then return {'', ''} end
return {name, redis.call('HGET', KEYS[1], name) or ''}
"""

# KEYS: an owner's keys. ARGV: name, wrapped key, the same wrapped anew. Not one that was destroyed meanwhile.
_REWRAP_KEY: Final = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""

# KEYS: an owner's keys. The name stays, so that what the key has sealed is known as forgotten rather than damaged.
_DESTROY_KEY: Final = """
local name = redis.call('HGET', KEYS[1], 'current')
if not name then return '' end
redis.call('HSET', KEYS[1], name, '')
redis.call('HDEL', KEYS[1], 'current')
return name
"""

_FREES: Final = "#!lua flags=allow-oom\n"
"""For what must go on when the memory is full: taking over, and making room."""

SCRIPTS: Final = {
    "make": Script("#!lua\n" + _RECORD + _MAKE),
    "acquire": Script(_FREES + _RECORD + _ACQUIRE),
    "commit": Script("#!lua\n" + _RECORD + _POINTER + _COMMIT),
    "erase": Script(_FREES + _RECORD + _ERASE),
    "make-key": Script("#!lua\n" + _MAKE_KEY),
    "read-key": Script("#!lua flags=no-writes\n" + _READ_KEY),
    "rewrap-key": Script("#!lua\n" + _REWRAP_KEY),
    "destroy-key": Script(_FREES + _DESTROY_KEY),
    "users": Script("#!lua flags=no-writes\n" + _RECORD + _USERS),
    "pointers": Script("#!lua flags=no-writes\n" + _RECORD + _POINTER + _POINTERS),
    "parked": Script("#!lua flags=no-writes\n" + _RECORD + _PARKED),
    "read": Script("#!lua flags=no-writes\n" + _RECORD + _READ),
}
