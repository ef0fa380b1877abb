from tests.golden import FOLDER, names, resolved

for file in FOLDER.glob("*/*.yaml"):
    file.unlink()
for name in names():
    (FOLDER / name).parent.mkdir(exist_ok=True)
    (FOLDER / f"{name}.yaml").write_text(resolved(name), encoding="utf-8")
