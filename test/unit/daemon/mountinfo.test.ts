import test from 'ava';
import { isInside, MountTable, ownerOf } from '../../../src/daemon/mountinfo';

const TEXT = [
  '21 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard',
  '40 21 0:44 / /mnt/a\\040b rw,nosuid,nodev shared:7 - fuse.imagefs imagefs:a\\040b.qed ro,user_id=1000,group_id=0',
  '41 21 0:45 / /mnt/vm rw - tmpfs none rw',
  '42 41 0:46 / /mnt/vm ro,nosuid master:1 propagate_from:2 - fuse.imagefs imagefs:vm.qed rw,user_id=0',
  '43 42 7:0 / /mnt/vm/layers rw - ext4 /dev/loop0 rw',
  '44 21 0:47 / /mnt/vm2 rw - tmpfs none rw',
  '',
].join('\n');

test('MountTable reads escaped names, optional fields and super options', (t) => {
  const entry = new MountTable(TEXT).find('/mnt/a b');
  t.is(entry?.type, 'fuse.imagefs');
  t.is(entry?.source, 'imagefs:a b.qed');
  t.is(entry?.device, '0:44');
  t.deepEqual(entry?.superOptions, ['ro', 'user_id=1000', 'group_id=0']);
  t.is(entry && ownerOf(entry), 1000);
});

test('MountTable.find() sees the topmost of stacked mounts', (t) => {
  t.is(new MountTable(TEXT).find('/mnt/vm')?.id, 42);
  // The order of the lines does not matter: the parent numbers tell.
  t.is(new MountTable(TEXT.split('\n').reverse().join('\n')).find('/mnt/vm')?.id, 42);
});

test('MountTable.below() lists mounts inside, not the mount itself and not its neighbours', (t) => {
  t.deepEqual(
    new MountTable(TEXT).below('/mnt/vm').map(({ mountpoint }) => mountpoint),
    ['/mnt/vm/layers'],
  );
});

test('MountTable.ours() leaves other file systems out', (t) => {
  t.deepEqual(
    new MountTable(TEXT).ours().map(({ id }) => id),
    [40, 42],
  );
});

test('MountTable skips lines that it cannot read', (t) => {
  t.deepEqual(new MountTable('nonsense\n1 2 3\n').entries, []);
});

test('MountTable.read() knows the root and /proc of this machine', (t) => {
  const table = MountTable.read();
  t.is(table.find('/proc')?.type, 'proc');
  t.truthy(table.find('/'));
});

test('isInside() compares whole components', (t) => {
  t.true(isInside('/mnt/vm', '/mnt/vm'));
  t.true(isInside('/mnt/vm/disk', '/mnt/vm'));
  t.false(isInside('/mnt/vm2', '/mnt/vm'));
  t.true(isInside('/mnt', '/'));
});
