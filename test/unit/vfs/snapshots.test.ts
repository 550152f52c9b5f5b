import test from 'ava';
import type { FileSystem } from '../../../src/vfs/filesystem';
import { pattern } from './memory-node';
import { CLUSTER, codeOf, MOUNTED_MS, READ, readDisk, WRITE, walk } from './mount-fixture';
import { DATE_SEC, mountSnapshots, namesIn, VM_STATE } from './snapshot-fixture';

test('snapshots/ lists a view for each snapshot, and is there when there is none', (t) => {
  const empty = mountSnapshots();
  t.deepEqual(namesIn(empty.fileSystem, empty.folder), []);
  t.is(empty.fileSystem.attributes(empty.folder).nlink, 2);
  t.is(empty.fileSystem.attributes(empty.folder).mtimeMs, MOUNTED_MS);
  t.is(empty.fileSystem.attributes(1).nlink, 4, 'layers and snapshots');
  t.true(empty.fileSystem.list(1).some(({ name, kind }) => name === 'snapshots' && kind === 'directory'));

  const { fileSystem, folder } = mountSnapshots((source) => {
    source.add('one');
    source.add('with state', { vmStateSize: VM_STATE.length });
  });
  t.deepEqual(namesIn(fileSystem, folder), ['one', 'with state']);
  t.deepEqual(namesIn(fileSystem, walk(fileSystem, 'snapshots/one')), ['disk', 'info.json', 'map.json']);
  t.deepEqual(namesIn(fileSystem, walk(fileSystem, 'snapshots/with state')), [
    'disk',
    'info.json',
    'map.json',
    'vmstate',
  ]);
  const attributes = fileSystem.attributes(walk(fileSystem, 'snapshots/one'));
  t.like(attributes, { kind: 'directory', mode: 0o755, nlink: 2, mtimeMs: DATE_SEC * 1000 + 500, volatile: true });
  t.is(fileSystem.attributes(folder).nlink, 4);
});

test('every name in snapshots/ leads to its inode number, and each number is one file', (t) => {
  const { fileSystem, folder } = mountSnapshots((source) => {
    for (let i = 0; i < 5; i++) source.add(`s${i}`, { vmStateSize: i * 100 });
  });
  const seen = new Set<number>([1, folder]);
  let files = 0;
  for (const view of fileSystem.list(folder)) {
    t.is(fileSystem.lookup(folder, view.name), view.ino);
    for (const { name, ino, kind } of [view, ...fileSystem.list(view.ino)]) {
      t.false(seen.has(ino), name);
      seen.add(ino);
      t.is(fileSystem.attributes(ino).ino, ino);
      t.is(fileSystem.attributes(ino).kind, kind);
      if (kind === 'file') t.is(fileSystem.lookup(view.ino, name), ino);
      files++;
    }
  }
  t.is(files, 5 + 5 * 3 + 4);
});

test('a snapshot shows its own content and size, whatever happens to the live disk', (t) => {
  const { fileSystem, live } = mountSnapshots((source, node) => {
    source.add('before');
    source.add('smaller', { virtualSize: 2 * CLUSTER });
    node.write(0, pattern(CLUSTER, 9), 0, CLUSTER);
    source.add('after');
  });
  const before = new Uint8Array(4 * CLUSTER);
  before.set(pattern(CLUSTER, 1));
  const after = new Uint8Array(4 * CLUSTER);
  after.set(pattern(CLUSTER, 9));
  const disk = walk(fileSystem, 'disk');
  fileSystem.write(disk, 0, 0, pattern(CLUSTER, 5), 0, CLUSTER, false);
  t.deepEqual(readDisk(fileSystem, 'snapshots/before/disk'), before);
  t.deepEqual(readDisk(fileSystem, 'snapshots/after/disk'), after);
  t.deepEqual(readDisk(fileSystem, 'snapshots/smaller/disk'), before.subarray(0, 2 * CLUSTER));
  t.is(fileSystem.attributes(walk(fileSystem, 'snapshots/smaller/disk')).size, 2 * CLUSTER);
  live.resize(8 * CLUSTER);
  t.is(fileSystem.attributes(walk(fileSystem, 'snapshots/before/disk')).size, 4 * CLUSTER);
  const entries = JSON.parse(textOf(fileSystem, 'snapshots/before/map.json')) as { length: number }[];
  t.is(
    entries.reduce((sum, { length }) => sum + length, 0),
    4 * CLUSTER,
  );
});

function textOf(fileSystem: FileSystem, name: string): string {
  const ino = walk(fileSystem, name);
  const { handle } = fileSystem.open(ino, READ);
  const target = Buffer.alloc(65_536);
  const count = fileSystem.read(ino, handle, 0, target, 0, target.length);
  fileSystem.release(ino, handle);
  return target.toString('utf8', 0, count);
}

test('vmstate has its exact size and is read to its end', (t) => {
  const { fileSystem } = mountSnapshots((source) => source.add('s', { vmStateSize: VM_STATE.length }));
  const ino = walk(fileSystem, 'snapshots/s/vmstate');
  t.is(fileSystem.attributes(ino).size, VM_STATE.length);
  const { handle } = fileSystem.open(ino, READ);
  const cases: [offset: number, length: number, expected: number][] = [
    [0, VM_STATE.length, VM_STATE.length],
    [0, VM_STATE.length + 5, VM_STATE.length],
    [9_999, 10, 1],
    [10_000, 10, 0],
    [20_000, 10, 0],
    [4_097, 100, 100],
  ];
  for (const [offset, length, expected] of cases) {
    const target = new Uint8Array(length + 4).fill(0xee);
    t.is(fileSystem.read(ino, handle, offset, target, 2, length), expected, `${length} at ${offset}`);
    t.deepEqual(target.subarray(2, 2 + expected), VM_STATE.subarray(offset, offset + expected));
    t.true(target.subarray(2 + expected).every((byte) => byte === 0xee));
  }
  t.is(cases.length, 6);
  t.is(fileSystem.seek(ino, handle, 5, 'data'), 5);
  t.is(fileSystem.seek(ino, handle, 5, 'hole'), VM_STATE.length);
  t.is(
    codeOf(() => fileSystem.seek(ino, handle, VM_STATE.length, 'hole')),
    'ENXIO',
  );
  t.is(
    codeOf(() => walk(mountSnapshots((source) => source.add('s')).fileSystem, 'snapshots/s/vmstate')),
    'ENOENT',
  );
});

test('nothing in a snapshot can be written', (t) => {
  const { fileSystem } = mountSnapshots((source) => source.add('s', { vmStateSize: 100 }), { growable: true });
  const view = walk(fileSystem, 'snapshots/s');
  const outcomes = fileSystem.list(view).map(({ name, ino }) => {
    const attempts = [
      () => fileSystem.open(ino, WRITE),
      () => fileSystem.open(ino, { read: true, write: false, truncate: true }),
      () => fileSystem.write(ino, 0, 0, new Uint8Array(8), 0, 8, false),
      () => fileSystem.setSize(ino, 0),
      () => fileSystem.setSize(ino, 2 ** 30),
      () => fileSystem.fallocate(ino, 0, 'punch-hole', true, 0, 512),
    ];
    return [name, new Set(attempts.map((attempt) => codeOf(attempt)))] as const;
  });
  t.deepEqual(
    outcomes,
    ['disk', 'info.json', 'map.json', 'vmstate'].map((name) => [name, new Set(['EROFS'])]),
  );
  t.is(
    codeOf(() => fileSystem.open(view, READ)),
    'EISDIR',
  );
  t.is(
    codeOf(() => fileSystem.lookup(walk(fileSystem, 'snapshots/s/disk'), 'x')),
    'ENOTDIR',
  );
  for (const name of ['nothing', '', 'stats.json', '..']) {
    t.is(
      codeOf(() => fileSystem.lookup(view, name)),
      'ENOENT',
      name,
    );
  }
  t.is(
    codeOf(() => fileSystem.lookup(view, 'n'.repeat(256))),
    'ENAMETOOLONG',
  );
});

test('names of snapshots are made safe, and a duplicate gets its id', (t) => {
  const { fileSystem, folder, another } = mountSnapshots((source) => {
    for (const name of ['a', 'a', '', '.', '..', 'x/y', 'x_y', 'line\nfeed', 'a~2', 'a', 'n'.repeat(300)])
      source.add(name);
    source.add('n'.repeat(260), { id: 'x'.repeat(70_000) });
    source.add('second of an id', { id: '1' });
  });
  const expected = [
    'a',
    'a~2',
    '3',
    '_',
    '__',
    'x_y',
    'x_y~7',
    'line_feed',
    'a~2~9',
    'a~10',
    'n'.repeat(255),
    `n~${'x'.repeat(253)}`,
  ];
  t.deepEqual(namesIn(fileSystem, folder), expected);
  t.deepEqual(namesIn(another(), folder), expected);
});

test('a name that was given stays, though the one that had it first goes', (t) => {
  const { fileSystem, folder, another } = mountSnapshots((source) => {
    source.add('a');
    source.add('a');
  });
  const other = another();
  t.deepEqual(namesIn(other, folder), ['a', 'a~2']);
  fileSystem.removeDirectory(folder, 'a', true);
  t.deepEqual(namesIn(fileSystem, folder), ['a~2']);
  t.deepEqual(namesIn(other, folder), ['a~2']);
  t.deepEqual(namesIn(another(), folder), ['a~2']);
});

test('a thousand snapshots cost a list: nodes are opened when they are asked for, once a thread', (t) => {
  const { fileSystem, folder, source, another } = mountSnapshots((made) => {
    for (let i = 0; i < 1000; i++) made.add(`s${i}`);
  });
  t.is(fileSystem.list(folder).length, 1000);
  for (let i = 0; i < 1000; i++) fileSystem.attributes(fileSystem.lookup(folder, `s${i}`));
  t.deepEqual(source.calls, ['list']);
  for (let i = 0; i < 3; i++) readDisk(fileSystem, 'snapshots/s500/disk');
  t.deepEqual(source.calls, ['list', 'open 501']);
  readDisk(another(), 'snapshots/s500/disk');
  t.deepEqual(source.calls, ['list', 'open 501', 'list', 'open 501']);
});

test('reading the live disk asks nothing of the snapshots', (t) => {
  const { fileSystem, source } = mountSnapshots((made) => made.add('s'));
  const disk = walk(fileSystem, 'disk');
  const { handle } = fileSystem.open(disk, WRITE);
  const generation = source.generation.bind(source);
  let asked = 0;
  source.generation = () => {
    asked++;
    return generation();
  };
  fileSystem.write(disk, handle, 0, new Uint8Array(100), 0, 100, false);
  fileSystem.read(disk, handle, 0, new Uint8Array(100), 0, 100);
  fileSystem.release(disk, handle);
  t.is(asked, 0);
  t.deepEqual(source.calls, []);
});
