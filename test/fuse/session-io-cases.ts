import * as fs from 'node:fs';
import * as path from 'node:path';
import { fallocate } from '../../src/system/fallocate';
import { seekData, seekHole } from '../../src/system/lseek';
import { copyRange, fallocateBits, writeDsync } from './calls';
import { BLOCK_BYTES, DATA_BYTES, DISK_BYTES, ISLAND } from './memory-filesystem';

import { eventsDuring, expectedBytes, MIB, type Run, readAt, type SuiteOptions, withFile } from './suite-tools';

export function registerIoCases(run: Run, options: SuiteOptions): void {
  ioCases(run, options);
  endCases(run);
  syncCases(run, options);
  spaceCases(run, options);
}

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
