/** Bytes into and out of `disk`: dd, cp, odd offsets, the end, truncation, syncing. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import type { ExecutionContext } from 'ava';
import { MIB } from '../../src/units';
import { workspace } from '../mount/cli';
import {
  CLUSTER,
  DISK_SIZE,
  type Mount,
  mount,
  noise,
  onBothSessions,
  overlayImage,
  program,
  sameBytes,
  standAloneImage,
  succeed,
  verifyImage,
} from './disk-mount';

onBothSessions('dd of=disk and dd if=disk carry a whole disk, and the image holds it', async (t, session) => {
  const directory = workspace(t);
  const image = standAloneImage(directory);
  const raw = path.join(directory, 'raw.img');
  const shadow = noise(DISK_SIZE, 2);
  fs.writeFileSync(raw, shadow);
  const { disk, unmount } = await mount(t, session, [image]);

  const put = await succeed(t, 'dd', [`if=${raw}`, `of=${disk}`, 'bs=1M']);
  t.regex(put.stderr, new RegExp(`^${DISK_SIZE} bytes`, 'm'));
  t.is(fs.statSync(disk).size, DISK_SIZE);
  const out = path.join(directory, 'out.img');
  for (const blockSize of ['1M', '4095', '1000003']) {
    await succeed(t, 'dd', [`if=${disk}`, `of=${out}`, `bs=${blockSize}`]);
    sameBytes(t, fs.readFileSync(out), shadow, `dd bs=${blockSize}`);
  }
  await unmount();
  await verifyImage(t, directory, image, shadow);
});

onBothSessions('dd of=disk and cp raw.img disk leave the size alone', async (t, session) => {
  const directory = workspace(t);
  const { image, shadow } = overlayImage(directory);
  const small = path.join(directory, 'small.img');
  const { disk, unmount } = await mount(t, session, [image]);

  const commands: ((source: string) => Promise<unknown>)[] = [
    (source) => succeed(t, 'dd', [`if=${source}`, `of=${disk}`, 'bs=64k']),
    (source) => succeed(t, 'cp', [source, disk]),
    (source) => succeed(t, 'sh', ['-c', 'cat "$1" > "$2"', 'sh', source, disk]),
    (source) => succeed(t, 'dd', [`if=${source}`, `of=${disk}`, 'bs=4k', 'conv=notrunc,fsync']),
  ];
  for (const [index, command] of commands.entries()) {
    const content = noise(MIB + 1 + index * 1000, 10 + index);
    fs.writeFileSync(small, content);
    await command(small);
    content.copy(shadow);
    t.is(fs.statSync(disk).size, DISK_SIZE, `command ${index}`);
    sameBytes(t, fs.readFileSync(disk), shadow, `command ${index}`);
  }
  for (const size of ['0', '1', '1M', String(DISK_SIZE - 1), String(DISK_SIZE)]) {
    await succeed(t, 'truncate', ['-s', size, disk]);
    t.is(fs.statSync(disk).size, DISK_SIZE, `truncate -s ${size}`);
  }
  sameBytes(t, fs.readFileSync(disk), shadow, 'after truncate');
  await unmount();
  await verifyImage(t, directory, image, shadow);
});

/** Content differs on both sides of each: start of the disk, cluster, MiB, end of the backing file, end of the disk. */
const EDGES = [0, CLUSTER, MIB, 2 * MIB, 5 * MIB + 512, 8 * MIB, DISK_SIZE];
const LENGTHS = [1, 511, 512, 513, 4096, CLUSTER, CLUSTER + 1, MIB];

onBothSessions('disk takes every offset and length around its edges', async (t, session) => {
  const directory = workspace(t);
  const { image, shadow } = overlayImage(directory);
  const { disk, unmount } = await mount(t, session, [image]);
  const fd = fs.openSync(disk, 'r+');
  let cases = 0;
  const wrong: string[] = [];
  for (const edge of EDGES) {
    for (const length of LENGTHS) {
      for (const offset of [edge - length, edge - length + 1, edge - 1, edge, edge + 1]) {
        if (offset < 0 || offset + length > DISK_SIZE) continue;
        cases += 1;
        const content = noise(length, cases);
        const written = fs.writeSync(fd, content, 0, length, offset);
        content.copy(shadow, offset);
        // One byte more on each side: nothing beside the range may have changed.
        const from = Math.max(0, offset - 1);
        const found = Buffer.alloc(length + 2);
        const count = fs.readSync(fd, found, 0, found.length, from);
        const expected = shadow.subarray(from, from + found.length);
        if (written !== length || Buffer.compare(found.subarray(0, count), expected) !== 0)
          wrong.push(`${length} at ${offset}`);
      }
    }
  }
  fs.closeSync(fd);
  t.deepEqual(wrong, []);
  t.is(cases, CASES_AT_EDGES);
  sameBytes(t, fs.readFileSync(disk), shadow, 'the whole disk');
  await unmount();
  await verifyImage(t, directory, image, shadow);
});

const CASES_AT_EDGES = 211;

onBothSessions('reads are short at the end of the disk, writes too, and past it is no space', async (t, session) => {
  const directory = workspace(t);
  const { image, shadow } = overlayImage(directory);
  const { disk, unmount } = await mount(t, session, [image]);
  const fd = fs.openSync(disk, 'r+');
  const reads: [offset: number, length: number, expected: number][] = [
    [DISK_SIZE - 1, 1, 1],
    [DISK_SIZE - 1, 2, 1],
    [DISK_SIZE - 4096, 1_048_576, 4096],
    [DISK_SIZE, 1, 0],
    [DISK_SIZE + 1, 4096, 0],
    [DISK_SIZE + 100 * MIB, 4096, 0],
  ];
  for (const [offset, length, expected] of reads) {
    t.is(fs.readSync(fd, Buffer.alloc(length), 0, length, offset), expected, `read ${length} at ${offset}`);
  }
  const writes: [offset: number, length: number, expected: number][] = [
    [DISK_SIZE - 1, 2, 1],
    [DISK_SIZE - 512, 4096, 512],
    [DISK_SIZE - 4097, 4098, 4097],
  ];
  for (const [index, [offset, length, expected]] of writes.entries()) {
    const content = noise(length, 30 + index);
    t.is(fs.writeSync(fd, content, 0, length, offset), expected, `write ${length} at ${offset}`);
    content.copy(shadow, offset, 0, expected);
  }
  for (const offset of [DISK_SIZE, DISK_SIZE + 1, DISK_SIZE + 100 * MIB]) {
    t.throws(() => fs.writeSync(fd, Buffer.alloc(512), 0, 512, offset), { code: 'ENOSPC' }, `write at ${offset}`);
  }
  t.throws(() => fs.ftruncateSync(fd, DISK_SIZE + 1), { code: 'EPERM' });
  fs.closeSync(fd);
  t.throws(() => fs.truncateSync(disk, 2 * DISK_SIZE), { code: 'EPERM' });
  t.is(fs.statSync(disk).size, DISK_SIZE);
  sameBytes(t, fs.readFileSync(disk), shadow, 'after all of it');
  await unmount();
  await verifyImage(t, directory, image, shadow);
});

onBothSessions('programs that write past the end say that no space is left', async (t, session) => {
  const directory = workspace(t);
  const image = standAloneImage(directory, MIB);
  const big = path.join(directory, 'big.img');
  const content = noise(MIB + 4096, 40);
  fs.writeFileSync(big, content);
  const { disk } = await mount(t, session, [image]);
  const attempts: [string, string[]][] = [
    ['dd', [`if=${big}`, `of=${disk}`, 'bs=1M']],
    ['dd', [`if=${big}`, `of=${disk}`, 'bs=300k']],
    ['cp', [big, disk]],
    ['sh', ['-c', 'cat "$1" > "$2"', 'sh', big, disk]],
  ];
  for (const [name, args] of attempts) {
    const ran = await program(name, args);
    t.is(ran.code, 1, name);
    t.regex(ran.stderr, /No space left on device/, name);
    t.is(fs.statSync(disk).size, MIB);
    sameBytes(t, fs.readFileSync(disk), content.subarray(0, MIB), `${name}: what fits was written`);
  }
});

onBothSessions(
  'programs that write side by side, in shared clusters, disturb each other nowhere',
  async (t, session) => {
    const directory = workspace(t);
    const { image, shadow } = overlayImage(directory);
    const { disk, unmount } = await mount(t, session, [image]);
    const writers = 4;
    const piece = 7 * 1024 + 512;
    const rounds = 120;
    // Writer w owns pieces w, w + 4, w + 8, ...: every cluster is shared by all of them.
    const script =
      'for i in $(seq 0 $(($2 - 1))); do dd if="$1" of="$3" bs=$4 skip=$i seek=$((i * $5 + $6)) count=1 conv=notrunc 2>&1 || exit 1; done';
    const contents = Array.from({ length: writers }, (_, writer) => noise(piece * rounds, 200 + writer));
    await Promise.all(
      contents.map(async (content, writer) => {
        const source = path.join(directory, `writer-${writer}`);
        fs.writeFileSync(source, content);
        await succeed(t, 'sh', [
          '-c',
          script,
          'sh',
          source,
          String(rounds),
          disk,
          String(piece),
          String(writers),
          String(writer),
        ]);
      }),
    );
    for (const [writer, content] of contents.entries()) {
      for (let round = 0; round < rounds; round += 1) {
        content.copy(shadow, (round * writers + writer) * piece, round * piece, (round + 1) * piece);
      }
    }
    sameBytes(t, fs.readFileSync(disk), shadow, 'all writers');
    await unmount();
    await verifyImage(t, directory, image, shadow);
  },
);

function flushes({ mountpoint }: Mount): number {
  const text = fs.readFileSync(path.join(mountpoint, 'stats.json'), 'utf8');
  return (JSON.parse(text) as { flush_operations: number }).flush_operations;
}

function writeOnce(disk: string, flags: number): void {
  const fd = fs.openSync(disk, fs.constants.O_RDWR | flags);
  fs.writeSync(fd, noise(4096, 50), 0, 4096, 8192);
  fs.closeSync(fd);
}

async function flushesOf(t: ExecutionContext, mounted: Mount, act: () => unknown): Promise<boolean> {
  const before = flushes(mounted);
  await act();
  const after = flushes(mounted);
  t.log(`${after - before} flushes`);
  return after > before;
}

onBothSessions('fsync, fdatasync, O_SYNC and O_DSYNC flush the image before they return', async (t, session) => {
  const directory = workspace(t);
  const mounted = await mount(t, session, [standAloneImage(directory)]);
  const { disk } = mounted;
  const fd = fs.openSync(disk, 'r+');
  const withWrite = (act: () => void) => () => {
    fs.writeSync(fd, noise(512, 51), 0, 512, 0);
    act();
  };
  const cases: [name: string, act: () => unknown][] = [
    ['fsync', withWrite(() => fs.fsyncSync(fd))],
    ['fdatasync', withWrite(() => fs.fdatasyncSync(fd))],
    ['O_SYNC', () => writeOnce(disk, fs.constants.O_SYNC)],
    ['O_DSYNC', () => writeOnce(disk, fs.constants.O_DSYNC)],
    ['dd oflag=sync', () => succeed(t, 'dd', ['if=/dev/zero', `of=${disk}`, 'bs=4k', 'count=2', 'oflag=sync'])],
    ['dd conv=fsync', () => succeed(t, 'dd', ['if=/dev/zero', `of=${disk}`, 'bs=4k', 'count=2', 'conv=fsync'])],
    ['dd conv=fdatasync', () => succeed(t, 'dd', ['if=/dev/zero', `of=${disk}`, 'bs=4k', 'count=2', 'conv=fdatasync'])],
  ];
  for (const [name, act] of cases) t.true(await flushesOf(t, mounted, act), name);
  fs.closeSync(fd);
});
