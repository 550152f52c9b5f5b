import test from 'ava';
import { BlockError } from '../../../src/errors';
import type { FileSystem } from '../../../src/vfs/filesystem';
import { finishSnapshots } from '../../../src/vfs/image-filesystem';
import { buildTree } from '../../../src/vfs/tree';
import { MemoryNode, pattern } from './memory-node';
import { CLUSTER, codeOf, MOUNTED_MS, mount, READ, readDisk, WRITE, walk } from './mount-fixture';
import { mountSnapshots, namesIn } from './snapshot-fixture';

function readAt(fileSystem: FileSystem, ino: number, handle: number): number {
  const target = new Uint8Array(16);
  fileSystem.read(ino, handle, 0, target, 0, 16);
  return target[0];
}

test('makeDirectory() takes a snapshot, which every thread sees at once', (t) => {
  const { fileSystem, folder, another, live } = mountSnapshots();
  const others = [another(), another()];
  for (const other of others) t.deepEqual(namesIn(other, folder), []);
  const ino = fileSystem.makeDirectory(folder, 'before update');
  live.write(0, pattern(CLUSTER, 8), 0, CLUSTER);
  for (const each of [fileSystem, ...others]) {
    t.is(each.lookup(folder, 'before update'), ino);
    t.deepEqual(readDisk(each, 'snapshots/before update/disk').subarray(0, CLUSTER), pattern(CLUSTER, 1));
  }
  t.true(others[0].attributes(folder).mtimeMs > MOUNTED_MS);
  t.is(others[0].attributes(folder).nlink, 3);
});

test('removeDirectory() deletes a snapshot; its number is nobody’s any more, even if the image gives its id out again', (t) => {
  const { fileSystem, folder, another, source } = mountSnapshots((made) => made.add('first'));
  const other = another();
  const ino = fileSystem.makeDirectory(folder, 'x');
  const disk = other.lookup(ino, 'disk');
  t.is(other.attributes(disk).ino, disk);
  other.removeDirectory(folder, 'x', true);
  t.deepEqual(source.ids, ['1']);
  const again = fileSystem.makeDirectory(folder, 'x');
  t.deepEqual(source.ids, ['1', '2']);
  t.not(again, ino);
  for (const each of [fileSystem, other, another()]) {
    t.is(each.lookup(folder, 'x'), again);
    for (const attempt of [
      () => each.open(disk, READ),
      () => each.attributes(each.lookup(ino, 'disk')),
      () => each.lookup(ino, 'disk'),
      () => each.list(ino),
    ]) {
      t.is(codeOf(attempt), 'ENOENT');
    }
  }
});

test('inode numbers mean the same snapshot in every thread, whatever happens in which', (t) => {
  const { folder, another } = mountSnapshots((made) => {
    for (let i = 0; i < 5; i++) made.add(`old${i}`);
  });
  const threads = [another(), another(), another()];
  const ever = new Map<number, string>();
  for (let step = 0; step < 200; step++) {
    const acting = threads[(step * 7) % 3];
    const names = namesIn(acting, folder);
    if (step % 5 < 3) acting.makeDirectory(folder, `s${step}`);
    else if (names.length > 0) acting.removeDirectory(folder, names[(step * 13) % names.length], true);
    const lists = threads.map((thread) => thread.list(folder).map(({ name, ino }) => `${ino} ${name}`));
    t.deepEqual(lists[1], lists[0]);
    t.deepEqual(lists[2], lists[0]);
    for (const { ino, name } of threads[step % 3].list(folder)) {
      t.is(ever.get(ino) ?? name, name, 'a number was given to another snapshot');
      ever.set(ino, name);
    }
  }
  t.is(ever.size, 125);
});

test('a deleted snapshot is read to the end by those who have it open, in any thread, and deleted with the last handle', (t) => {
  const { fileSystem, folder, another, source } = mountSnapshots((made) => made.add('s', { vmStateSize: 10 }));
  const other = another();
  const disk = walk(fileSystem, 'snapshots/s/disk');
  const vmState = walk(other, 'snapshots/s/vmstate');
  const { handle } = fileSystem.open(disk, READ);
  const { handle: second } = other.open(vmState, READ);
  t.is(
    codeOf(() => fileSystem.removeDirectory(folder, 's', false)),
    'EBUSY',
    'for sessions that cannot serve a file without a name',
  );
  t.deepEqual(namesIn(other, folder), ['s']);
  fileSystem.removeDirectory(folder, 's', true);
  const late = another();
  for (const each of [fileSystem, other, late]) {
    t.deepEqual(namesIn(each, folder), []);
    t.is(
      codeOf(() => each.lookup(folder, 's')),
      'ENOENT',
    );
    t.is(
      codeOf(() => each.open(disk, READ)),
      'ENOENT',
    );
    t.is(readAt(each, disk, handle), pattern(1, 1)[0]);
    t.is(each.attributes(disk).size, 4 * CLUSTER, 'fstat');
  }
  t.deepEqual(source.ids, ['1']);
  late.release(disk, handle);
  t.deepEqual(source.ids, ['1'], 'the VM state is still open');
  fileSystem.release(vmState, second);
  t.deepEqual(source.ids, []);
  for (const each of [fileSystem, other, late]) {
    t.is(
      codeOf(() => each.attributes(each.lookup(folder, 's'))),
      'ENOENT',
    );
  }
});

test('a name is free as soon as it is removed, though somebody still reads what had it', (t) => {
  const { fileSystem, folder, live, another } = mountSnapshots((made) => made.add('s'));
  const disk = walk(fileSystem, 'snapshots/s/disk');
  const { handle } = fileSystem.open(disk, READ);
  fileSystem.removeDirectory(folder, 's', true);
  live.write(0, pattern(CLUSTER, 7), 0, CLUSTER);
  another().makeDirectory(folder, 's');
  t.deepEqual(namesIn(fileSystem, folder), ['s']);
  t.is(readAt(fileSystem, disk, handle), pattern(1, 1)[0]);
  t.is(readDisk(fileSystem, 'snapshots/s/disk')[0], pattern(1, 7)[0]);
  fileSystem.release(disk, handle);
  t.is(readDisk(fileSystem, 'snapshots/s/disk')[0], pattern(1, 7)[0]);
});

test('a text of a snapshot stays readable and is released after the snapshot has gone', (t) => {
  const { fileSystem, folder, source } = mountSnapshots((made) => made.add('s'));
  const map = walk(fileSystem, 'snapshots/s/map.json');
  const { handle } = fileSystem.open(map, READ);
  fileSystem.removeDirectory(folder, 's', true);
  const target = Buffer.alloc(1000);
  t.true(fileSystem.read(map, handle, 0, target, 0, 1000) > 10);
  fileSystem.release(map, handle);
  t.deepEqual(source.ids, []);
});

test('a snapshot that cannot be deleted keeps its name', (t) => {
  const { fileSystem, folder, another, source } = mountSnapshots((made) => made.add('s'));
  const other = another();
  source.failing = { call: 'remove', error: new BlockError('IO', 'no') };
  t.is(
    codeOf(() => fileSystem.removeDirectory(folder, 's', true)),
    'IO',
  );
  t.deepEqual(namesIn(other, folder), ['s']);

  const disk = walk(fileSystem, 'snapshots/s/disk');
  const { handle } = fileSystem.open(disk, READ);
  fileSystem.removeDirectory(folder, 's', true);
  other.makeDirectory(folder, 's');
  source.failing = { call: 'remove', error: new BlockError('IO', 'no') };
  t.notThrows(() => fileSystem.release(disk, handle));
  t.deepEqual(namesIn(other, folder), ['s~1', 's']);
  t.deepEqual(namesIn(fileSystem, folder), namesIn(other, folder));
});

test('finishSnapshots() deletes what was kept for handles that nobody released', (t) => {
  const { fileSystem, folder, plan, live, source } = mountSnapshots((made) => {
    made.add('a');
    made.add('b');
  });
  fileSystem.open(walk(fileSystem, 'snapshots/a/disk'), READ);
  fileSystem.removeDirectory(folder, 'a', true);
  t.deepEqual(source.ids, ['1', '2']);
  finishSnapshots(plan, [live], { source });
  t.deepEqual(source.ids, ['2']);
});

test('rename() renames, and replaces nothing', (t) => {
  const { fileSystem, folder, another, source } = mountSnapshots((made) => {
    made.add('a');
    made.add('a');
    made.add('b');
  });
  const other = another();
  const ino = other.lookup(folder, 'a~2');
  fileSystem.rename(folder, 'a~2', folder, 'c');
  t.is(other.lookup(folder, 'c'), ino);
  t.deepEqual(namesIn(other, folder), ['a', 'c', 'b']);
  t.is(source.list().find(({ id }) => id === '2')?.name, 'c');
  t.notThrows(() => fileSystem.rename(folder, 'c', folder, 'c'));
  for (const [name, newName, expected] of [
    ['c', 'a', 'EEXIST'],
    ['none', 'd', 'ENOENT'],
    ['c', '', 'EINVAL'],
    ['c', 'a\x1b[2J', 'EINVAL'],
    ['c', 'n'.repeat(256), 'ENAMETOOLONG'],
  ]) {
    t.is(
      codeOf(() => fileSystem.rename(folder, name, folder, newName)),
      expected,
      `${name} to ${newName}`,
    );
  }
  t.is(
    codeOf(() => fileSystem.rename(folder, 'c', 1, 'd')),
    'EPERM',
  );
  t.is(
    codeOf(() => fileSystem.rename(folder, 'c', ino, 'd')),
    'EPERM',
  );
  t.deepEqual(namesIn(fileSystem, folder), ['a', 'c', 'b']);
});

test('names that cannot be shown as they are, or are taken, are refused', (t) => {
  const { fileSystem, folder, source } = mountSnapshots((made) => {
    made.add('a');
    made.add('a');
  });
  const cases: [name: string, expected: string][] = [
    ['a', 'EEXIST'],
    ['a~2', 'EEXIST'],
    ['', 'EINVAL'],
    ['.', 'EINVAL'],
    ['..', 'EINVAL'],
    ['x/y', 'EINVAL'],
    ['line\nfeed', 'EINVAL'],
    ['\x7f', 'EINVAL'],
    ['\u0085', 'EINVAL'],
    ['no utf-8 \ufffd', 'EINVAL'],
    ['n'.repeat(256), 'ENAMETOOLONG'],
    ['é'.repeat(128), 'ENAMETOOLONG'],
    ['n'.repeat(255), 'nothing thrown'],
    ['é'.repeat(127), 'nothing thrown'],
    ['-rf *', 'nothing thrown'],
  ];
  for (const [name, expected] of cases)
    t.is(
      codeOf(() => fileSystem.makeDirectory(folder, name)),
      expected,
      name,
    );
  t.is(cases.length, 15);
  t.is(source.calls.filter((call) => call.startsWith('take')).length, 3);
});

test('directories are made and removed nowhere else', (t) => {
  const { fileSystem, folder } = mountSnapshots((made) => made.add('s'));
  const inos = [1, walk(fileSystem, 'layers'), walk(fileSystem, 'snapshots/s'), walk(fileSystem, 'disk'), 99_999];
  for (const ino of inos) {
    const attempts = [
      () => fileSystem.makeDirectory(ino, 'x'),
      () => fileSystem.removeDirectory(ino, 'layers', true),
      () => fileSystem.rename(ino, 'disk', folder, 'x'),
    ];
    t.deepEqual(
      attempts.map((attempt) => codeOf(attempt)),
      ['EPERM', 'EPERM', 'EPERM'],
      String(ino),
    );
  }
  const plain = mount().fileSystem;
  t.is(
    codeOf(() => walk(plain, 'vm.img/snapshots')),
    'ENOENT',
  );
  t.is(
    codeOf(() => plain.makeDirectory(walk(plain, 'vm.img'), 'snapshots')),
    'EPERM',
  );
});

test('on a read-only mount, and of a read-only image, snapshots do not change', (t) => {
  for (const options of [{ readOnly: true }, { nodeReadOnly: true }]) {
    const { fileSystem, folder, source } = mountSnapshots((made) => made.add('s'), options);
    for (const attempt of [
      () => fileSystem.makeDirectory(folder, 'x'),
      () => fileSystem.removeDirectory(folder, 's', true),
      () => fileSystem.rename(folder, 's', folder, 't'),
    ]) {
      t.is(codeOf(attempt), 'EROFS');
    }
    t.deepEqual(namesIn(fileSystem, folder), ['s']);
    t.deepEqual(source.ids, ['1']);
  }
});

function writeWord(fileSystem: FileSystem, name: string, word: string, at = 0): string {
  const bytes = Buffer.from(`  ${word}  `);
  return codeOf(() => {
    const ino = walk(fileSystem, `snapshots/${name}/.revert`);
    const { handle } = fileSystem.open(ino, { read: false, write: true, truncate: true });
    fileSystem.setSize(ino, 0);
    try {
      fileSystem.write(ino, handle, at, bytes, 2, bytes.length - 4, false);
    } finally {
      fileSystem.release(ino, handle);
    }
  });
}

test('.revert makes the disk what the snapshot is, tells the kernel, and is in no listing', (t) => {
  const { fileSystem, folder, live, replaced, another } = mountSnapshots((made) => made.add('s'));
  const view = walk(fileSystem, 'snapshots/s');
  t.false(namesIn(fileSystem, view).includes('.revert'));
  t.is(fileSystem.attributes(fileSystem.lookup(view, '.revert')).mode, 0o200);
  for (const word of ['', 'no', 'now ', 'now\n\n', 'NOW', 'forced', 'n'.repeat(10_000)])
    t.is(writeWord(fileSystem, 's', word), 'EINVAL', word);
  t.is(writeWord(fileSystem, 's', 'now', 5), 'EINVAL');
  for (const word of ['now', 'now\n', 'force', 'force\n']) {
    live.write(0, pattern(CLUSTER, 6), 0, CLUSTER);
    t.is(writeWord(fileSystem, 's', word), 'nothing thrown', word);
    t.is(readDisk(another(), 'disk')[0], pattern(1, 1)[0], word);
  }
  const disks = [walk(fileSystem, 'disk'), walk(fileSystem, 'layers/0-vm.qcow2/disk')];
  t.deepEqual(replaced, [disks, disks, disks, disks, disks, disks], 'before, too, when forced');
  t.deepEqual(namesIn(fileSystem, folder), ['s']);
});

test('.revert is refused with EBUSY while any thread has the live disk open, unless forced', (t) => {
  const { fileSystem, live, source, another } = mountSnapshots((made) => made.add('s'));
  const other = another();
  for (const name of ['disk', 'layers/0-vm.qcow2/disk']) {
    live.write(0, pattern(CLUSTER, 6), 0, CLUSTER);
    const ino = walk(other, name);
    const { handle } = other.open(ino, READ);
    t.is(writeWord(fileSystem, 's', 'now'), 'EBUSY');
    t.is(readAt(fileSystem, ino, handle), pattern(1, 6)[0]);
    t.is(writeWord(fileSystem, 's', 'force'), 'nothing thrown');
    t.is(readAt(other, ino, handle), pattern(1, 1)[0]);
    fileSystem.release(ino, handle);
    t.is(writeWord(fileSystem, 's', 'now'), 'nothing thrown');
  }
  // Refused opens are not counted.
  t.is(
    codeOf(() => other.open(walk(other, 'layers/0-vm.qcow2/disk'), WRITE)),
    'EROFS',
  );
  t.is(writeWord(fileSystem, 's', 'now'), 'nothing thrown');
  source.failing = { call: 'revert', error: new BlockError('NO_SPACE', 'no') };
  t.is(writeWord(fileSystem, 's', 'now'), 'NO_SPACE');
});

test('.revert of a snapshot that has been deleted meanwhile, or of a read-only image, does nothing', (t) => {
  const { fileSystem, folder, source } = mountSnapshots((made) => made.add('s'));
  const ino = walk(fileSystem, 'snapshots/s/.revert');
  const { handle } = fileSystem.open(ino, WRITE);
  fileSystem.removeDirectory(folder, 's', true);
  t.is(
    codeOf(() => fileSystem.write(ino, handle, 0, Buffer.from('now'), 0, 3, false)),
    'ENOENT',
  );
  t.false(source.calls.some((call) => call.startsWith('revert')));
  const readOnly = mountSnapshots((made) => made.add('s'), { nodeReadOnly: true });
  t.is(
    codeOf(() => walk(readOnly.fileSystem, 'snapshots/s/.revert')),
    'ENOENT',
  );
});

test('several images have their own snapshots, and numbers that do not meet', (t) => {
  const layer = (path: string) => ({ path, format: 'memory', readOnly: false, mode: 0o100640, mtimeMs: 0 });
  const images = ['/a', '/b'].map((path) => ({ name: path.slice(1), layers: [layer(path)], snapshots: true }));
  const plan = buildTree(images, { singleImage: false, mountedMs: MOUNTED_MS });
  t.is(plan.files.filter((file) => file?.kind === 'snapshots').length, 2);
  t.deepEqual(
    plan.files.flatMap((file) => (file?.kind === 'snapshots' ? [[file.mode, file.viewMode, file.fileMode]] : [])),
    [
      [0o750, 0o750, 0o640],
      [0o750, 0o750, 0o640],
    ],
  );
  t.is(new MemoryNode({ size: CLUSTER }).size(), CLUSTER);
});
