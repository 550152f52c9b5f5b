import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import test from 'ava';
import { openImage } from '../../../src/block/open';
import { createTableCache } from '../../../src/shared/table-cache';
import { MIB } from '../../../src/units';
import { OPEN_TEXTS_MAX } from '../../../src/vfs/text-file';
import { textContent } from '../../../src/vfs/texts';
import { pattern } from './memory-node';
import { ALL_FILES, CLUSTER, codeOf, mount, READ, readText, walk } from './mount-fixture';

test('info.json shows the words of qemu-img info, indented as there', (t) => {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'imagefs-'));
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }));
  const image = path.join(directory, 'disk.img');
  fs.writeFileSync(image, pattern(8192, 1));
  const cache = createTableCache(MIB);
  const opened = openImage(image, {
    readOnly: true,
    format: 'raw',
    backing: 'directory',
    threads: 1,
    cache,
    imageId: 0,
    lock: false,
  });
  t.teardown(() => opened.close());
  const { cheap, chunks } = textContent({ of: 'info', node: { image: 0, layer: 0 } }, opened.node);
  const text = [...chunks()].join('');
  t.true(cheap);
  const info = JSON.parse(text) as Record<string, unknown>;
  t.is(info['virtual-size'], 8192);
  t.is(info.filename, image);
  t.is(info.format, 'raw');
  t.is(text, `${JSON.stringify(info, null, 4)}\n`);
});

test('info.json is made by the block layer, which knows only nodes that it opened', (t) => {
  const { fileSystem } = mount();
  const ino = walk(fileSystem, 'vm.img/info.json');
  t.throws(() => fileSystem.open(ino, READ));
  t.is(fileSystem.attributes(ino).size, 0, 'ls -l works all the same');
});

test('stats.json and error.json are as long as their size says', (t) => {
  const { fileSystem } = mount();
  for (const name of ALL_FILES.filter((file) => /(stats|error)\.json$/.test(file))) {
    const { size } = fileSystem.attributes(walk(fileSystem, name));
    t.is(Buffer.byteLength(readText(fileSystem, name)), size, name);
    t.true(size > 0, name);
    t.true(readText(fileSystem, name).endsWith('}\n'), name);
  }
});

type Entry = { start: number; length: number; depth: number; present: boolean; zero: boolean; data: boolean };

test('map.json tells of the chain, and that of a layer of its own allocation', (t) => {
  const { fileSystem } = mount();
  const brief = (name: string) =>
    (JSON.parse(readText(fileSystem, name)) as Entry[]).map(
      ({ start, length, depth, data, zero }) =>
        `${start / CLUSTER}+${length / CLUSTER} ${depth} ${data ? 'data' : zero ? 'zero' : 'none'}`,
    );
  t.deepEqual(brief('vm.img/map.json'), ['0+1 1 data', '1+1 0 data', '2+1 1 data', '3+1 1 zero']);
  t.deepEqual(
    (JSON.parse(readText(fileSystem, 'vm.img/layers/0-vm.img/map.json')) as Entry[]).map((entry) => [
      entry.start,
      entry.length,
      entry.data,
    ]),
    [
      [0, CLUSTER, false],
      [CLUSTER, CLUSTER, true],
      [2 * CLUSTER, 2 * CLUSTER, false],
    ],
  );
  t.deepEqual(
    brief('vm.img/layers/1-base.img/map.json').filter((line) => line.endsWith('data')),
    ['0+1 0 data', '2+1 0 data'],
  );
  t.is(readText(fileSystem, 'vm.img/map.json').split('\n').length, 5, 'one entry a line');
  t.is(fileSystem.attributes(walk(fileSystem, 'vm.img/map.json')).size, 0);
});

test('stats.json counts in the names of BlockDeviceStats', (t) => {
  const { fileSystem } = mount();
  const disk = walk(fileSystem, 'vm.img/disk');
  fileSystem.write(disk, 0, 0, pattern(1000, 0), 0, 1000, true);
  fileSystem.read(disk, 0, 0, new Uint8Array(300), 0, 300);
  t.deepEqual(JSON.parse(readText(fileSystem, 'vm.img/stats.json')), {
    rd_bytes: 300,
    wr_bytes: 1000 + CLUSTER,
    unmap_bytes: 0,
    rd_operations: 1,
    wr_operations: 2,
    flush_operations: 1,
    unmap_operations: 0,
    wr_highest_offset: 0,
    failed_rd_operations: 0,
    failed_wr_operations: 0,
    failed_flush_operations: 0,
  });
});

test('error.json says why an image could not be opened', (t) => {
  t.deepEqual(JSON.parse(readText(mount().fileSystem, 'broken/error.json')), {
    filename: 'broken',
    code: 'INVALID_FORMAT',
    message: 'Cannot open "broken"',
  });
});

test('A text that one thread opened is read and released by another', (t) => {
  const { fileSystem, another } = mount();
  const ino = walk(fileSystem, 'vm.img/stats.json');
  const { handle } = fileSystem.open(ino, READ);
  const other = another();
  const target = Buffer.alloc(4096);
  const count = other.read(ino, handle, 0, target, 0, 4096);
  t.is((JSON.parse(target.toString('utf8', 0, count)) as { wr_bytes: number }).wr_bytes, CLUSTER);
  other.release(ino, handle);
  t.false(fs.existsSync(`/proc/self/fd/${handle}`));
});

test('The bound on open texts holds for all threads and files together', (t) => {
  const { fileSystem, another } = mount();
  const other = another();
  const names = ['vm.img/stats.json', 'vm.img/map.json', 'broken/error.json'];
  const opened = Array.from({ length: OPEN_TEXTS_MAX }, (_, index) => {
    const side = index % 2 === 0 ? fileSystem : other;
    const ino = walk(side, names[index % 3] ?? '');
    return { ino, handle: side.open(ino, READ).handle };
  });
  for (const side of [fileSystem, other]) {
    for (const name of names)
      t.is(
        codeOf(() => side.open(walk(side, name), READ)),
        'EMFILE',
      );
    t.notThrows(() => side.open(walk(side, 'vm.img/disk'), READ), 'disks do not count');
  }
  for (const { ino, handle } of opened) other.release(ino, handle);
  t.is(
    codeOf(() => readText(fileSystem, 'vm.img/stats.json')),
    'nothing thrown',
  );
});
