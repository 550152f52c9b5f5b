/** Mounts and unmounts over and over, in the ways that users and accidents have, and counts what stays behind. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { describeLeftovers, findLeftovers } from '../../scripts/leftovers';
import { command as create } from '../../src/cli/commands/create';
import { type LaunchedDaemon, launchDaemon } from '../../src/daemon/launch';
import { unmount } from '../../src/fuse/unmount';
import { SECTOR_SIZE } from '../../src/units';
import { daemonConfig, endOf, imagefs, isRoot, letGo, run } from '../mount/cli';

export type MountWay = 'plain' | 'native' | 'commands' | 'snapshot' | 'loop' | 'killed' | 'lazy' | 'refused';

/** Seven of ten are plain, so that thousands take minutes; the other three take turns. */
const RARE: readonly MountWay[] = ['native', 'snapshot', 'loop', 'killed', 'lazy', 'refused', 'commands'];

/** How the mount with this number goes. */
export function wayOf(index: number): MountWay {
  if (index % 10 < 7) return 'plain';
  const way = RARE[(Math.floor(index / 10) * 3 + (index % 10) - 7) % RARE.length];
  return way === 'loop' && !isRoot() ? 'plain' : way;
}

export interface MountPlace {
  directory: string;
  mountpoint: string;
  qed: string;
  qcow2: string;
}

export function preparePlace(directory: string): MountPlace {
  const mountpoint = path.join(directory, 'mnt');
  fs.mkdirSync(mountpoint);
  const image = (format: string): string => {
    const file = path.join(directory, `vm.${format}`);
    const code = create.run(['-q', '-f', format, file, '8M']);
    if (code !== 0) throw new Error(`create ${file}: exit code ${String(code)}`);
    return file;
  };
  return { directory, mountpoint, qed: image('qed'), qcow2: image('qcow2') };
}

/** One mount from its beginning to its end. Throws when anything is not as it should be. */
export async function mountOnce(place: MountPlace, index: number): Promise<MountWay> {
  const way = wayOf(index);
  await ways[way](place, index);
  return way;
}

const ways: Record<MountWay, (place: MountPlace, index: number) => Promise<void>> = {
  async plain(place, index) {
    const daemon = await launch(place, place.qed);
    writeSector(place, index);
    await leave(place, daemon);
  },

  async native(place, index) {
    const daemon = await launch(place, place.qed, 'native');
    writeSector(place, index);
    await leave(place, daemon);
  },

  async commands(place, index) {
    await succeed('mount', place.qed, place.mountpoint);
    writeSector(place, index);
    await succeed('umount', '--wait', place.mountpoint);
  },

  async snapshot(place, index) {
    const daemon = await launch(place, place.qcow2);
    const snapshot = path.join(place.mountpoint, 'snapshots', `s${index}`);
    fs.mkdirSync(snapshot);
    writeSector(place, index);
    fs.readFileSync(path.join(snapshot, 'info.json'));
    fs.rmdirSync(snapshot);
    await leave(place, daemon);
  },

  async loop(place, index) {
    const daemon = await launch(place, place.qed);
    const found = await run('losetup', ['-f', '--show', path.join(place.mountpoint, 'disk')]);
    if (found.code !== 0) throw new Error(`losetup: ${found.stderr}`);
    const device = found.stdout.trim();
    try {
      fs.writeFileSync(device, Buffer.alloc(SECTOR_SIZE, index), { flag: 'rs+' });
    } finally {
      spawnSync('losetup', ['-d', device]);
    }
    // The kernel lets go of the file a moment after the loop device has gone.
    await succeed('umount', '--wait', place.mountpoint);
    await endOf(daemon);
  },

  async killed(place, index) {
    const daemon = await launch(place, place.qed);
    writeSector(place, index);
    daemon.signal('SIGKILL');
    await endOf(daemon);
    await unmount(place.mountpoint, { lazy: true });
  },

  async lazy(place) {
    const daemon = await launch(place, place.qed);
    const fd = fs.openSync(path.join(place.mountpoint, 'disk'), 'r+');
    try {
      await unmount(place.mountpoint, { lazy: true });
      fs.writeSync(fd, Buffer.alloc(SECTOR_SIZE, 1), 0, SECTOR_SIZE, 0);
    } finally {
      // On another thread: this one must be free to hear of the daemon's end.
      await new Promise<void>((resolve) => fs.close(fd, () => resolve()));
    }
    await endsWell(daemon);
  },

  async refused(place) {
    const { code } = await imagefs(['mount', path.join(place.directory, 'missing.qed'), place.mountpoint]);
    if (code !== 1) throw new Error(`mounting a missing image: exit code ${code}`);
    const broken = path.join(place.directory, 'broken.qed');
    fs.writeFileSync(broken, Buffer.from('QED\0 and nothing more'));
    // Past the checks of the command, so that the daemon itself has to give up.
    const refused = await launch(place, broken).then(
      () => false,
      () => true,
    );
    if (!refused) throw new Error('a broken image was mounted');
  },
};

function launch(
  { mountpoint }: MountPlace,
  image: string,
  session: 'kernel' | 'native' = 'kernel',
): Promise<LaunchedDaemon> {
  return launchDaemon(daemonConfig(image, mountpoint, { threads: 1, threadsMax: 1, session }), [image]);
}

async function leave(place: MountPlace, daemon: LaunchedDaemon): Promise<void> {
  await letGo(place.mountpoint);
  await endsWell(daemon);
}

async function endsWell(daemon: LaunchedDaemon): Promise<void> {
  const code = await endOf(daemon);
  if (code !== 0) throw new Error(`the daemon ended with exit code ${code}`);
}

async function succeed(...args: string[]): Promise<void> {
  const { code, stderr } = await imagefs(args);
  if (code !== 0) throw new Error(`imagefs ${args.join(' ')}: ${stderr}`);
}

function writeSector({ mountpoint }: MountPlace, index: number): void {
  const fd = fs.openSync(path.join(mountpoint, 'disk'), 'r+');
  try {
    fs.writeSync(fd, Buffer.alloc(SECTOR_SIZE, index), 0, SECTOR_SIZE, (index % 1024) * 8 * SECTOR_SIZE);
  } finally {
    fs.closeSync(fd);
  }
}

/** What there is of a kind that must not grow from mount to mount. */
export interface Census {
  /** Open descriptors of this process. */
  descriptors: number;
  /** Processes, mounts and loop devices of the directory: a line each. */
  left: string[];
  /** Names in the directory and in the temporary one. */
  files: string[];
}

export function takeCensus(directory: string, temporary: string): Census {
  return {
    descriptors: fs.readdirSync('/proc/self/fd').length,
    left: describeLeftovers(findLeftovers(directory)),
    files: [...fs.readdirSync(directory), ...fs.readdirSync(temporary).filter((name) => /imagefs|fuse/.test(name))],
  };
}
