/**
 * What every session must do, over a MemoryFileSystem in another process. One mount for all cases, which run one after the other;
 * each uses its own part of the disk.
 */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import type { ExecutionContext, TestFn } from 'ava';
import type { SessionKind } from '../../src/fuse/session';
import { blockDeviceSize } from '../../src/system/block-device';
import { fallocate } from '../../src/system/fallocate';
import { seekData, seekHole } from '../../src/system/lseek';
import { copyRange, fallocateBits, mapFile, readAttribute, writeAttribute, writeDsync } from './calls';
import { eventsOf, mountingImpossible, readWhole, type Server, skip, startServer } from './harness';
import {
  BLOCK_BYTES,
  DATA_BYTES,
  DISK_BYTES,
  type EventName,
  FAULTS,
  GROWN_TEXT,
  ISLAND,
  MANY_NAMES,
  nameOfMany,
  patternByte,
} from './memory-filesystem';

export interface SuiteOptions {
  session: SessionKind;
  kernelCache?: boolean;
  /** What this session can carry at all. */
  carries: {
    fallocate: boolean;
    lseek: boolean;
    /** Whether a single write is to be flushed (RWF_DSYNC); O_SYNC of the whole file always gets through. */
    syncOfOneWrite: boolean;
    sharedMapping: boolean;
  };
  /** How many cases must run: a suite must not shrink to nothing unseen. */
  cases: number;
}

const MIB = 1024 * 1024;

type Case = (t: ExecutionContext, server: Server) => void | Promise<void>;

function expectedBytes(offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let index = 0; index < length; index++) bytes[index] = patternByte(offset + index);
  return bytes;
}

/** How often each event has happened while `action` ran. */
async function eventsDuring(server: Server, action: () => void | Promise<void>): Promise<Record<EventName, number>> {
  const before = await eventsOf(server);
  await action();
  const after = await eventsOf(server);
  return Object.fromEntries(
    Object.entries(after).map(([name, count]) => [name, count - before[name as EventName]]),
  ) as Record<EventName, number>;
}

async function withFile<Result>(
  server: Server,
  name: string,
  flags: string | number,
  use: (handle: fs.promises.FileHandle) => Promise<Result> | Result,
): Promise<Result> {
  const handle = await fs.promises.open(path.join(server.mountpoint, name), flags);
  try {
    return await use(handle);
  } finally {
    await handle.close();
  }
}

/** By number: Node has no name for EDQUOT. */
function errnoName(error: NodeJS.ErrnoException | undefined): string | undefined {
  return Object.entries(os.constants.errno).find(([, number]) => number === -(error?.errno ?? 0))?.[0];
}

async function readAt(handle: fs.promises.FileHandle, offset: number, length: number): Promise<Buffer> {
  const buffer = Buffer.alloc(length, 0xee);
  const { bytesRead } = await handle.read(buffer, 0, length, offset);
  return buffer.subarray(0, bytesRead);
}

export function sessionSuite(test: TestFn, options: SuiteOptions): void {
  const undo: (() => void | Promise<void>)[] = [];
  let server: Server | undefined;
  let executed = 0;
  const impossible = mountingImpossible();

  test.before(async () => {
    if (impossible !== undefined) return;
    server = await startServer(
      { teardown: (step) => void undo.unshift(step) },
      { session: options.session, kernelCache: options.kernelCache ?? false },
    );
  });
  test.after.always(async () => {
    for (const step of undo) await step();
  });

  const name = options.kernelCache ? `${options.session} session with kernel_cache` : `${options.session} session`;
  const run = (title: string, body: Case): void => {
    test.serial(`${name}: ${title}`, async (t) => {
      if (server === undefined) return skip(t, impossible ?? 'not mounted');
      executed++;
      await body(t, server);
    });
  };

  ioCases(run, options);
  endCases(run);
  syncCases(run, options);
  spaceCases(run, options);
  treeCases(run);
  mappingCases(run, options);
  errorCases(run, options);

  test.serial(`${name}: all ${options.cases} cases ran`, (t) => {
    if (server === undefined) return skip(t, impossible ?? 'not mounted');
    t.is(executed, options.cases);
    t.is(server.process.exitCode, null, server.stderr());
  });
}

type Run = (title: string, body: Case) => void;

function ioCases(run: Run, options: SuiteOptions): void {
  run('read() returns the bytes at any offset and length, to 1 MiB and beyond', (t, server) =>
    withFile(server, 'readonly', 'r', async (handle) => {
      const lengths = [1, 2, 511, 4095, 4096, 4097, 131071, 131073, MIB - 1, MIB, MIB + 1, 2 * MIB + 3];
      for (const length of lengths) {
        for (const offset of [0, 1, 4095, 65537, MIB - 3]) {
          const want = expectedBytes(offset, length);
          if (!(await readAt(handle, offset, length)).equals(want)) return t.fail(`${length} bytes at ${offset}`);
        }
      }
      t.pass();
    }),
  );

  run('write() changes the bytes written and no others, at any offset and length', (t, server) =>
    withFile(server, 'disk', 'r+', async (handle) => {
      const base = 8192;
      for (const length of [1, 513, 4096, 131073, MIB, MIB + 5]) {
        for (const skew of [0, 3, 4093]) {
          const offset = base + skew;
          const before = await readAt(handle, offset - 7, 7);
          const behind = await readAt(handle, offset + length, 7);
          const bytes = Buffer.alloc(length, (length + skew) % 255);
          t.is((await handle.write(bytes, 0, length, offset)).bytesWritten, length);
          const want = Buffer.concat([before, bytes, behind]);
          if (!(await readAt(handle, offset - 7, length + 14)).equals(want)) return t.fail(`${length} at ${offset}`);
        }
      }
      t.pass();
    }),
  );

  run('eight readers at once each get their own bytes', async (t, server) => {
    const readers = Array.from({ length: 8 }, (_, reader) =>
      withFile(server, 'readonly', 'r', async (handle) => {
        for (let round = 0; round < 20; round++) {
          const offset = (reader * 104_729 + round * 65_551) % (2 * MIB);
          if (!(await readAt(handle, offset, 30_000)).equals(expectedBytes(offset, 30_000))) return false;
        }
        return true;
      }),
    );
    t.deepEqual(await Promise.all(readers), Array(8).fill(true));
  });

  run('copy_file_range() copies, whether the session carries it or the kernel reads and writes', async (t, server) => {
    const length = 300_001;
    await withFile(server, 'disk', 'r+', (target) =>
      withFile(server, 'readonly', 'r', async (source) => {
        const to = DISK_BYTES - length - 77;
        const events = await eventsDuring(server, () => {
          for (let done = 0; done < length; ) done += copyRange(source.fd, done, target.fd, to + done, length - done);
        });
        t.true((await readAt(target, to, length)).equals(expectedBytes(0, length)));
        if (options.session === 'kernel' && !options.kernelCache) t.deepEqual([events.reads, events.writes], [1, 1]);
      }),
    );
  });
}

function endCases(run: Run): void {
  run('read() is short at the end of the disk and empty past it', (t, server) =>
    withFile(server, 'readonly', 'r', async (handle) => {
      t.is((await readAt(handle, DISK_BYTES - 5, 4096)).length, 5);
      t.is((await readAt(handle, DISK_BYTES, 1)).length, 0);
      t.is((await readAt(handle, DISK_BYTES + 10 * MIB, 4096)).length, 0);
      t.is((await readAt(handle, 2 ** 52, 4096)).length, 0);
    }),
  );

  run('write() is short at the end of a fixed disk, and ENOSPC from there on', (t, server) =>
    withFile(server, 'disk', 'r+', async (handle) => {
      const bytes = Buffer.alloc(100, 0x5a);
      // Buffered writes of some kernels report the whole of it as failed; what matters is that nothing is claimed that was not stored.
      const crossing = await handle.write(bytes, 0, 100, DISK_BYTES - 40).then(
        ({ bytesWritten }) => bytesWritten,
        (error: NodeJS.ErrnoException) => error.code,
      );
      t.true(crossing === 40 || crossing === 'EIO' || crossing === 'ENOSPC', String(crossing));
      for (const offset of [DISK_BYTES, DISK_BYTES + MIB]) {
        const error = await t.throwsAsync<NodeJS.ErrnoException>(handle.write(bytes, 0, 100, offset));
        t.is(error?.message, 'ENOSPC: no space left on device, write');
      }
      t.is((await handle.stat()).size, DISK_BYTES);
    }),
  );

  run('O_TRUNC and truncating leave a fixed disk as it is', async (t, server) => {
    const disk = path.join(server.mountpoint, 'disk');
    const before = await fs.promises.readFile(disk);
    const events = await eventsDuring(server, async () => {
      await withFile(server, 'disk', 'w', () => undefined);
      await fs.promises.truncate(disk, 100);
      await withFile(server, 'disk', 'r+', (handle) => handle.truncate(4097));
    });
    t.is(events.setSizes, 3);
    t.is((await fs.promises.stat(disk)).size, DISK_BYTES);
    t.true(before.equals(await fs.promises.readFile(disk)));
    await t.throwsAsync(fs.promises.truncate(disk, DISK_BYTES + 1), { code: 'EPERM' });
  });
}

function syncCases(run: Run, options: SuiteOptions): void {
  run('fsync() and fdatasync() reach the file system, close() does not', async (t, server) => {
    const events = await eventsDuring(server, () =>
      withFile(server, 'disk', 'r+', async (handle) => {
        await handle.write(Buffer.alloc(10), 0, 10, 0);
        await handle.sync();
        await handle.datasync();
      }),
    );
    t.is(events.fsyncs, 2);
    t.is(events.syncWrites, 0);
  });

  run('O_SYNC and O_DSYNC writes are safe before they return', async (t, server) => {
    for (const flag of [fs.constants.O_SYNC, fs.constants.O_DSYNC]) {
      const events = await eventsDuring(server, () =>
        withFile(server, 'disk', fs.constants.O_RDWR | flag, async (handle) => {
          await handle.write(Buffer.alloc(5000, 1), 0, 5000, 10);
        }),
      );
      t.true(events.syncWrites + events.fsyncs > 0, JSON.stringify(events));
    }
  });

  run(
    `RWF_DSYNC of one write ${options.carries.syncOfOneWrite ? 'gets' : 'does not get'} through`,
    async (t, server) => {
      const events = await eventsDuring(server, () =>
        withFile(server, 'disk', 'r+', (handle) => {
          t.is(writeDsync(handle.fd, Buffer.alloc(512, 2), 4096), 512);
        }),
      );
      t.is(events.syncWrites + events.fsyncs > 0, options.carries.syncOfOneWrite, JSON.stringify(events));
    },
  );
}

function spaceCases(run: Run, options: SuiteOptions): void {
  const from = 4 * MIB;
  if (options.carries.fallocate) {
    run('fallocate() punches, zeroes and reserves', (t, server) =>
      withFile(server, 'disk', 'r+', async (handle) => {
        await handle.write(Buffer.alloc(MIB, 9), 0, MIB, from);
        const blocks = (await handle.stat()).blocks;
        const events = await eventsDuring(server, async () => {
          fallocate(handle.fd, 'punch-hole', from + 100, 300_000);
          fallocate(handle.fd, 'zero-range', from + 400_000, 5000);
          fallocate(handle.fd, 'allocate', from, 300_000);
          fallocate(handle.fd, 'allocate-keep-size', DISK_BYTES - 10, 20);
          fallocateBits(handle.fd, 0x11, from + 500_000, 1);
        });
        t.deepEqual([events.punches, events.zeroes, events.allocates], [1, 2, 2]);
        t.is((await handle.stat()).blocks, blocks);
        const zero = (bytes: Buffer): boolean => bytes.every((byte) => byte === 0);
        t.true(zero(await readAt(handle, from + 100, 300_000)));
        t.true(zero(await readAt(handle, from + 400_000, 5000)));
        t.deepEqual([...(await readAt(handle, from + 98, 4))], [9, 9, 0, 0]);
        t.deepEqual([...(await readAt(handle, from + 300_098, 4))], [0, 0, 9, 9]);
        t.throws(() => fallocate(handle.fd, 'allocate', DISK_BYTES - 10, 20), { code: 'ENOSPC' });
        t.throws(() => fallocate(handle.fd, 'punch-hole', 8192, 2 ** 53 - 4096), { code: 'EFBIG' });
        // COLLAPSE_RANGE, INSERT_RANGE
        for (const bits of [0x08, 0x20]) {
          t.throws(() => fallocateBits(handle.fd, bits, 0, BLOCK_BYTES), { code: 'EOPNOTSUPP' });
        }
      }),
    );
  } else {
    run('fallocate() is refused as not supported: the session cannot carry it', (t, server) =>
      withFile(server, 'disk', 'r+', (handle) => {
        t.throws(() => fallocate(handle.fd, 'punch-hole', from, 4096), { code: 'EOPNOTSUPP' });
        t.throws(() => fallocate(handle.fd, 'allocate', from, 4096), { code: 'EOPNOTSUPP' });
      }),
    );
  }

  run(`SEEK_DATA and SEEK_HOLE ${options.carries.lseek ? 'find the holes' : 'see one run of data'}`, (t, server) =>
    withFile(server, 'readonly', 'r', (handle) => {
      t.is(seekData(handle.fd, 5), 5);
      t.is(seekData(handle.fd, DISK_BYTES), undefined);
      t.is(seekHole(handle.fd, DISK_BYTES), undefined);
      const hole = seekHole(handle.fd, 100);
      if (!options.carries.lseek) {
        t.is(hole, DISK_BYTES);
        return;
      }
      t.is(hole, DATA_BYTES);
      t.is(seekData(handle.fd, DATA_BYTES + 7), ISLAND);
      t.is(seekData(handle.fd, ISLAND + BLOCK_BYTES), undefined);
      t.is(seekHole(handle.fd, DATA_BYTES + 7), DATA_BYTES + 7);
    }),
  );
}

function treeCases(run: Run): void {
  run('stat() shows what the file system says', async (t, server) => {
    const stat = await fs.promises.stat(path.join(server.mountpoint, 'disk'));
    t.is(stat.size, DISK_BYTES);
    t.true(stat.isFile());
    t.is(stat.mode & 0o7777, 0o644);
    t.is(stat.blksize, 65536);
    t.true(stat.blocks >= DATA_BYTES / 512 && stat.blocks % 8 === 0);
    t.is(stat.ino, 2);
    t.deepEqual([stat.atimeMs, stat.mtimeMs, stat.ctimeMs], [1_000_000_000_123, 1_100_000_000_456, 1_200_000_000_789]);
    const folder = await fs.promises.stat(path.join(server.mountpoint, 'many'));
    t.true(folder.isDirectory());
    t.is(folder.mode & 0o7777, 0o755);
  });

  run('statfs() carries counts above 32 bits', async (t, server) => {
    const { bsize, blocks, bfree, files } = await fs.promises.statfs(server.mountpoint);
    t.is(bsize * blocks, 2 ** 33 * BLOCK_BYTES);
    t.true(Math.abs(bsize * bfree - (2 ** 32 + 5) * BLOCK_BYTES) < bsize);
    t.is(files, 17);
  });

  run('readdir() lists 5,000 names, each once, with their kinds', async (t, server) => {
    const entries = await fs.promises.readdir(path.join(server.mountpoint, 'many'), { withFileTypes: true });
    t.is(entries.length, MANY_NAMES);
    const names = new Set(entries.map((entry) => entry.name));
    for (let index = 0; index < MANY_NAMES; index++) if (!names.delete(nameOfMany(index))) t.fail(nameOfMany(index));
    t.is(names.size, 0);
    const root = await fs.promises.readdir(server.mountpoint, { withFileTypes: true });
    t.deepEqual(
      root
        .filter((entry) => entry.isDirectory())
        .map((entry) => entry.name)
        .sort(),
      ['faults', 'many'],
    );
    t.regex(execFileSync('ls', ['-a', path.join(server.mountpoint, 'many')], { encoding: 'utf8' }), /^\.\n\.\.\nname/);
  });

  run('text is read to its end whatever st_size says', async (t, server) => {
    t.is((await fs.promises.stat(path.join(server.mountpoint, 'events.json'))).size, 0);
    t.true((await eventsOf(server)).opens >= 0);
    t.is(await readWhole(path.join(server.mountpoint, 'growing.txt')), GROWN_TEXT);
  });

  run('what is not in the tree cannot be made, and what is there cannot be changed', async (t, server) => {
    const at = (name: string): string => path.join(server.mountpoint, name);
    const { promises } = fs;
    const refused: [string, string, () => unknown][] = [
      ['create', 'EPERM', () => promises.writeFile(at('new'), '')],
      ['exclusive create', 'EPERM', () => promises.open(at('new'), 'wx')],
      ['mkdir', 'EPERM', () => promises.mkdir(at('new'))],
      ['mkdir over', 'EEXIST', () => promises.mkdir(at('many'))],
      ['unlink', 'EPERM', () => promises.unlink(at('disk'))],
      ['rmdir', 'EPERM', () => promises.rmdir(at('many'))],
      ['rename', 'EPERM', () => promises.rename(at('disk'), at('other'))],
      ['rename over', 'EPERM', () => promises.rename(at('disk'), at('readonly'))],
      ['symlink', 'EPERM', () => promises.symlink('disk', at('new'))],
      ['link', 'EPERM', () => promises.link(at('disk'), at('new'))],
      ['chmod', 'EPERM', () => promises.chmod(at('disk'), 0o777)],
      ['chown', 'EPERM', () => promises.chown(at('disk'), 1, 1)],
      ['write to text', 'EROFS', () => promises.open(at('events.json'), 'r+')],
      ['write to a layer', 'EROFS', () => promises.open(at('readonly'), 'r+')],
      ['write to a folder', 'EISDIR', () => promises.open(at('many'), 'r+')],
      ['missing', 'ENOENT', () => promises.stat(at('missing'))],
      ['below a file', 'ENOTDIR', () => promises.stat(at('disk/x'))],
      ['readlink', 'EINVAL', () => promises.readlink(at('disk'))],
      ['getxattr', 'EOPNOTSUPP', async () => readAttribute(at('disk'), 'user.x')],
      ['setxattr', 'EOPNOTSUPP', async () => writeAttribute(at('disk'), 'user.x')],
      ['ioctl', 'ENOTTY', () => withFile(server, 'disk', 'r', (handle) => blockDeviceSize(handle.fd))],
    ];
    for (const [what, code, attempt] of refused) {
      const outcome = await Promise.resolve()
        .then(attempt)
        .then(
          () => 'succeeded',
          (error: NodeJS.ErrnoException) => error.code,
        );
      t.is(outcome, code, what);
    }
    t.throws(() => execFileSync('mkfifo', [at('new')], { stdio: 'pipe' }), { message: /Operation not permitted/ });
    await t.notThrowsAsync(promises.utimes(at('disk'), 1, 2));
    await t.notThrowsAsync(promises.access(at('disk'), fs.constants.R_OK | fs.constants.W_OK));
  });
}

function mappingCases(run: Run, options: SuiteOptions): void {
  run('mmap() for reading shows the disk', (t, server) =>
    withFile(server, 'readonly', 'r', (handle) => {
      const mapping = mapFile(handle.fd, 2 * MIB, 'private');
      try {
        t.true(Buffer.from(mapping.bytes.subarray(1_500_001, 1_600_001)).equals(expectedBytes(1_500_001, 100_000)));
      } finally {
        mapping.unmap();
      }
    }),
  );

  const shared = options.carries.sharedMapping;
  run(`mmap() for shared writing ${shared ? 'writes the disk' : 'is refused with ENODEV'}`, (t, server) =>
    withFile(server, 'disk', 'r+', async (handle) => {
      if (!shared) {
        t.throws(() => mapFile(handle.fd, MIB, 'shared'), { code: 'ENODEV' });
        return;
      }
      const mapping = mapFile(handle.fd, MIB, 'shared');
      try {
        mapping.bytes.set([1, 2, 3, 4], 700_001);
        mapping.sync();
      } finally {
        mapping.unmap();
      }
      t.deepEqual([...(await readAt(handle, 700_001, 4))], [1, 2, 3, 4]);
    }),
  );
}

function errorCases(run: Run, options: SuiteOptions): void {
  run(
    'whatever is thrown becomes one reply with its errno, bugs are logged, and the session goes on',
    async (t, server) => {
      for (const [name, fault] of Object.entries(FAULTS)) {
        await withFile(server, `faults/${name}`, 'r+', async (handle) => {
          const buffer = Buffer.alloc(100, 1);
          const read = await t.throwsAsync<NodeJS.ErrnoException>(handle.read(buffer, 0, 100, 0), undefined, name);
          t.is(errnoName(read), fault.errno, `${name}: read`);
          const stored = handle.write(buffer, 0, 100, 0).then(() => handle.sync());
          const write = await t.throwsAsync<NodeJS.ErrnoException>(stored, undefined, name);
          t.is(errnoName(write), fault.errno, `${name}: write`);
          if (options.kernelCache) return;
          const sync = await t.throwsAsync<NodeJS.ErrnoException>(handle.sync(), undefined, name);
          t.is(errnoName(sync), fault.errno, `${name}: fsync`);
        });
      }
      const log = server.stderr();
      t.regex(log, /internal error.*TypeError: undefined is not a function\n\s+at /);
      t.regex(log, /AssertionError.*must not be\n\s+at /);
      t.notRegex(log, /Cannot read "a"|no reply|second reply/);
      t.is((await readWhole(path.join(server.mountpoint, 'growing.txt'))).length, GROWN_TEXT.length);
    },
  );

  run('every file that was opened has been released', async (t, server) => {
    // RELEASE comes after close(2) has returned; each look gives the server time to serve it.
    let { opens, releases } = await eventsOf(server);
    for (let looks = 0; looks < 1000 && opens !== releases; looks++) ({ opens, releases } = await eventsOf(server));
    t.is(opens, releases);
  });
}
