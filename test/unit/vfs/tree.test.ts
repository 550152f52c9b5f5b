import test from 'ava';
import {
  buildTree,
  type FilePlan,
  modeOfFiles,
  ROOT_INO,
  type TreeImage,
  type TreeLayer,
  type TreePlan,
  TreeState,
  viewMode,
} from '../../../src/vfs/tree';

const MOUNTED_MS = 1_700_000_000_000;
const SINGLE = { singleImage: true, mountedMs: MOUNTED_MS };
const FOLDERS = { singleImage: false, mountedMs: MOUNTED_MS };

function layer(path: string, more: Partial<TreeLayer> = {}): TreeLayer {
  return { path, format: 'qed', readOnly: false, mode: 0o100644, mtimeMs: 1_600_000_000_000, ...more };
}

const VM: TreeImage = {
  name: 'vm.qed',
  layers: [layer('/images/vm.qed'), layer('/images/base.raw', { readOnly: true })],
};
const BROKEN: TreeImage = { name: 'broken.qed', error: { code: 'INVALID_FORMAT', message: 'no' } };

/** Every path of a plan with a word for what it is, in the order of a walk. */
function paths(plan: TreePlan, ino: number = ROOT_INO, prefix = ''): string[] {
  const file = plan.files[ino];
  if (file?.kind !== 'directory') return [`${prefix} ${wordFor(file)}`];
  const inside = file.children.flatMap((child) => paths(plan, child.ino, `${prefix}/${child.name}`));
  return [`${prefix}/`, ...inside];
}

function wordFor(file: FilePlan | undefined): string {
  if (file?.kind === 'disk') return `disk ${file.node.image}:${file.node.layer}${file.writable ? ' rw' : ''}`;
  if (file?.kind !== 'text') return 'nothing';
  return file.text.of === 'error' ? 'error' : `${file.text.of} ${file.text.node.image}:${file.text.node.layer}`;
}

function find(plan: TreePlan, path: string): FilePlan {
  let file = plan.files[ROOT_INO];
  for (const name of path.split('/').filter((part) => part !== '')) {
    const child = file?.kind === 'directory' ? file.children.find((entry) => entry.name === name) : undefined;
    file = child === undefined ? undefined : plan.files[child.ino];
  }
  if (file === undefined) throw new Error(`no ${path}`);
  return file;
}

const VIEW_OF_VM = [
  '/disk disk 0:0 rw',
  '/info.json info 0:0',
  '/map.json chain-map 0:0',
  '/stats.json stats 0:0',
  '/layers/',
  '/layers/0-vm.qed/',
  '/layers/0-vm.qed/disk disk 0:0',
  '/layers/0-vm.qed/info.json info 0:0',
  '/layers/0-vm.qed/map.json layer-map 0:0',
  '/layers/1-base.raw/',
  '/layers/1-base.raw/disk disk 0:1',
  '/layers/1-base.raw/info.json info 0:1',
  '/layers/1-base.raw/map.json layer-map 0:1',
];

test('buildTree() shows a single image as the root', (t) => {
  t.deepEqual(paths(buildTree([VM], SINGLE)), ['/', ...VIEW_OF_VM]);
});

test('buildTree() gives a folder of one image a folder', (t) => {
  const expected = ['/', '/vm.qed/', ...VIEW_OF_VM.map((line) => `/vm.qed${line}`)];
  t.deepEqual(paths(buildTree([VM], FOLDERS)), expected);
});

test('buildTree() gives each image a folder, and a broken one its error', (t) => {
  const other: TreeImage = { name: 'other', layers: [layer('/images/other', { readOnly: true })] };
  t.deepEqual(paths(buildTree([BROKEN, other], FOLDERS)), [
    '/',
    '/broken.qed/',
    '/broken.qed/error.json error',
    '/other/',
    '/other/disk disk 1:0',
    '/other/info.json info 1:0',
    '/other/map.json chain-map 1:0',
    '/other/stats.json stats 1:0',
    '/other/layers/',
    '/other/layers/0-other/',
    '/other/layers/0-other/disk disk 1:0',
    '/other/layers/0-other/info.json info 1:0',
    '/other/layers/0-other/map.json layer-map 1:0',
  ]);
});

test('buildTree() shows nothing for nothing, and a broken single image as its error', (t) => {
  t.deepEqual(paths(buildTree([], FOLDERS)), ['/']);
  t.deepEqual(paths(buildTree([BROKEN], SINGLE)), ['/', '/error.json error']);
});

test('buildTree() refuses what the caller must not ask for', (t) => {
  t.throws(() => buildTree([VM, VM], SINGLE), { name: 'AssertionError' });
  t.throws(() => buildTree([], SINGLE), { name: 'AssertionError' });
  t.throws(() => buildTree([{ name: 'a', layers: [] }], SINGLE), { name: 'AssertionError' });
});

test('buildTree() makes folder names safe and unique', (t) => {
  const named = (name: string): TreeImage => ({ name, error: { code: 'IO', message: '' } });
  const images = ['a', 'a', '', '..', '.', 'x/y', 'x_y', 'a~2', 'line\nfeed'].map(named);
  const root = find(buildTree(images, FOLDERS), '/');
  t.deepEqual(root.kind === 'directory' ? root.children.map(({ name }) => name) : [], [
    'a',
    'a~2',
    'image',
    '__',
    '_',
    'x_y',
    'x_y~2',
    'a~2~2',
    'line_feed',
  ]);
});

test('buildTree() names layers after their files', (t) => {
  const layers = ['/images/same.qed', '/other/same.qed', '/', `/images/${'n'.repeat(254)}`, '/images/a\x07b'].map(
    (path) => layer(path),
  );
  const folder = find(buildTree([{ name: 'vm', layers }], SINGLE), '/layers');
  const names = folder.kind === 'directory' ? folder.children.map(({ name }) => name) : [];
  t.deepEqual(names, ['0-same.qed', '1-same.qed', '2-image', `3-${'n'.repeat(253)}`, '4-a_b']);
});

test('buildTree() numbers every file once, densely, from the root on', (t) => {
  const plan = buildTree([VM, BROKEN, VM], FOLDERS);
  const linked = plan.files.flatMap((file) => (file?.kind === 'directory' ? file.children.map(({ ino }) => ino) : []));
  t.is(plan.files[0], undefined);
  t.deepEqual(
    [ROOT_INO, ...linked].sort((a, b) => a - b),
    Array.from({ length: plan.files.length - 1 }, (_, index) => index + 1),
  );
});

test('buildTree() gives the same plan for the same arguments', (t) => {
  t.deepEqual(buildTree([VM, BROKEN], FOLDERS).files, buildTree([VM, BROKEN], FOLDERS).files);
});

test('buildTree() makes a plan that survives a structured clone, with shared state', (t) => {
  const plan = buildTree([VM, BROKEN], FOLDERS);
  const clone = structuredClone(plan);
  t.deepEqual(clone.files, plan.files);
  const [here, there] = [new TreeState(plan.state), new TreeState(clone.state)];
  here.times[1] = 5;
  t.is(there.times[1], 5);
});

test('buildTree() sets the clocks: the mount, then each image', (t) => {
  const late: TreeImage = { name: 'late', layers: [layer('/images/late', { mtimeMs: 1_650_000_000_000.25 })] };
  const { times, openTexts } = new TreeState(buildTree([VM, BROKEN, late], FOLDERS).state);
  t.deepEqual([...times], [MOUNTED_MS, 1_600_000_000_000, MOUNTED_MS, 1_650_000_000_000.25]);
  t.is(openTexts[0], 0);
});

test('buildTree() names the first image that opened as the place for df', (t) => {
  t.is(buildTree([BROKEN, VM], FOLDERS).hostPath, '/images/vm.qed');
  t.is(buildTree([BROKEN], FOLDERS).hostPath, undefined);
});

/** Modes of the image and its backing file; expected modes of the disk, of the layer below, and of the root folder. */
const MODES: [modes: number[], disk: number, below: number | undefined, root: number][] = [
  [[0o100644], 0o644, undefined, 0o755],
  [[0o100600], 0o600, undefined, 0o700],
  [[0o100444], 0o644, undefined, 0o755],
  [[0o100400], 0o600, undefined, 0o700],
  [[0o100000], 0o600, undefined, 0o700],
  [[0o100777], 0o666, undefined, 0o755],
  [[0o104755], 0o644, undefined, 0o755],
  [[0o060660], 0o660, undefined, 0o750],
  [[0o100664, 0o100600], 0o620, 0o600, 0o700],
  [[0o100600, 0o100644], 0o600, 0o644, 0o755],
  [[0o100666, 0o100640], 0o662, 0o640, 0o750],
];

test('buildTree() lets others read a view only if they may read all its image files', (t) => {
  for (const [modes, disk, below, root] of MODES) {
    const layers = modes.map((mode, index) => layer(`/images/${index}`, { mode }));
    const plan = buildTree([{ name: 'vm', layers }], SINGLE);
    const label = modes.map((mode) => mode.toString(8)).join(' over ');
    t.is(find(plan, '/disk').mode, disk, label);
    t.is(find(plan, '/info.json').mode, disk, label);
    t.is(find(plan, '/layers/0-0/disk').mode, disk, label);
    if (below !== undefined) t.is(find(plan, '/layers/1-1/disk').mode, below, label);
    t.is(find(plan, '/').mode, root, label);
  }
  t.is(MODES.length, 11);
});

test('buildTree() keeps errors of broken images to the owner', (t) => {
  t.is(find(buildTree([BROKEN], FOLDERS), '/broken.qed/error.json').mode, 0o600);
  t.is(find(buildTree([BROKEN], FOLDERS), '/broken.qed').mode, 0o700);
});

test('viewMode() looks down from its layer only', (t) => {
  const layers = [layer('/a', { mode: 0o600 }), layer('/b', { mode: 0o644 }), layer('/c', { mode: 0o640 })];
  t.deepEqual(
    [0, 1, 2].map((index) => viewMode(layers, index)),
    [0o600, 0o640, 0o640],
  );
});

test('modeOfFiles(): a mount grants nobody more than every file that it shows', (t) => {
  const GROUP = 7;
  const cases: [mode: number, files: { mode: number; gid: number }[]][] = [
    [0o640, [{ mode: 0o100640, gid: GROUP }]],
    [0o664, [{ mode: 0o100664, gid: GROUP }]],
    // The mount's group is not the file's: its members are anybody.
    [0o600, [{ mode: 0o640, gid: 8 }]],
    [0o644, [{ mode: 0o664, gid: 8 }]],
    // Members of the file's group are anybody in the mount: what they lack, anybody lacks.
    [0o600, [{ mode: 0o606, gid: 8 }]],
    // A data file of its own rights.
    [
      0o600,
      [
        { mode: 0o644, gid: GROUP },
        { mode: 0o600, gid: GROUP },
      ],
    ],
    [
      0o440,
      [
        { mode: 0o660, gid: GROUP },
        { mode: 0o444, gid: GROUP },
      ],
    ],
  ];
  for (const [mode, files] of cases) t.is(modeOfFiles(files, GROUP).toString(8), mode.toString(8));
});
