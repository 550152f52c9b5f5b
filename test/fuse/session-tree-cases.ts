/** Cases of the suite of sessions: the tree, what is forbidden, mappings, errors. */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { blockDeviceSize } from '../../src/system/block-device';
import { mapFile, readAttribute, writeAttribute } from './calls';
import { eventsOf, readWhole } from './harness';
import { BLOCK_BYTES, DATA_BYTES, DISK_BYTES, FAULTS, GROWN_TEXT, MANY_NAMES, nameOfMany } from './memory-filesystem';

import { errnoName, expectedBytes, MIB, type Run, readAt, type SuiteOptions, withFile } from './suite-tools';

export function registerTreeCases(run: Run, options: SuiteOptions): void {
  treeCases(run);
  forbiddenCases(run);
  mappingCases(run, options);
  errorCases(run, options);
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
}

function forbiddenCases(run: Run): void {
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
